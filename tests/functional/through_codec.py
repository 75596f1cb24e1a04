"""QEMU's migration taken through the codec, in the place where the relay stands."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from pathlib import Path
from typing import Self

import numpy as np

from sterna.carrier.codec import Batch, Decoder, Encoder, pack, unpack
from sterna.carrier.segments import Segment

CACHE_BYTES = 64 << 20
WAIT_S = 60.0


class Codec:
    """Both ends, one after the other; proves that what comes out is what went in."""

    def __init__(self) -> None:
        self.encoder = Encoder(cache_bytes=CACHE_BYTES)
        self.decoder = Decoder(cache_bytes=CACHE_BYTES)
        self.literal_bytes = 0
        self._fed = bytearray()  # and has not come out yet
        self.page_records = 0
        self.zero_records = 0

    def take(self, data: bytes) -> bytes:
        """All of `data` at once; what comes out."""
        return self._out([*self.encoder.feed(data), *self.encoder.flush()])

    def receive(self, source: socket.socket) -> bytes | None:
        """What came out of what could be read; None at the end of the stream."""
        room = self.encoder.room()
        size = source.recv_into(room)
        if not size:
            return None
        self._fed += room[:size]
        batches = self.encoder.received(size)
        if not select.select([source], [], [], 0)[0]:
            batches += self.encoder.flush()
        out = self._out(batches)
        assert out == self._fed[: len(out)]
        del self._fed[: len(out)]
        return out

    def _out(self, batches: list[Batch]) -> bytes:
        out = bytearray()
        for batch in batches:
            block = pack(batch, 1)
            self.encoder.stats.packed(block)
            again = unpack(block)
            self.literal_bytes += len(again.literals)
            self.page_records += len(again.contents)
            self.zero_records += int(again.counts[again.kinds == Segment.ZEROS].sum())
            for piece in self.decoder.apply(again):
                out += piece
        return bytes(out)

    def must_have_known_the_pages(self) -> None:
        assert self.literal_bytes < 0.05 * self.encoder.stats.stream_bytes
        assert np.array_equal(self.encoder.pages.rows, self.decoder.rows)


class Relay:
    """Listens where the source's QEMU connects, and connects to where the target's listens."""

    def __init__(self, folder: Path) -> None:
        self.entry = folder / "entry"
        self.exit = folder / "exit"
        self.codecs: list[Codec] = []
        self.failures: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener.bind(str(self.entry))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
        self._listener.close()
        assert not self.failures, self.failures

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=self._guarded, args=(target, *arguments))
        self._threads.append(thread)
        thread.start()

    def _guarded(self, target, *arguments) -> None:
        try:
            target(*arguments)
        except BaseException as error:  # noqa: BLE001 - the test shall see it
            self.failures.append(error)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # of the end
            while True:
                source, _ = self._listener.accept()
                target = socket.socket(socket.AF_UNIX)
                target.connect(str(self.exit))
                self.codecs.append(Codec())
                self._start(self._forward, source, target, self.codecs[-1])
                self._start(self._back, target, source)

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, codec: Codec) -> None:
        with source, contextlib.suppress(OSError):
            while (data := codec.receive(source)) is not None:
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    @staticmethod
    def _back(target: socket.socket, source: socket.socket) -> None:
        with target, contextlib.suppress(OSError):
            while data := target.recv(1 << 16):
                source.sendall(data)
