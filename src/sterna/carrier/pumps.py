"""One connection of QEMU's and one stream of the link, joined.

A pump has a thread for each direction (memory has more). Promises: what QEMU wrote arrives in order
or not at all; an end on one side becomes an end on the other, and an error one at once, so that
QEMU never waits for nothing; between the two at most a few messages are kept.

Each side closes its own half: the end of QEMU's file finishes the stream, the end of the stream
shuts QEMU's socket down for writing. A broken stream or link closes the socket.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

import zstandard

from sterna.carrier.frames import Buffer
from sterna.carrier.link import Stream
from sterna.carrier.stages import Cut
from sterna.errors.carrier import BadBlock, LinkClosed, StreamReset

READ_BYTES = 512 << 10  # of one message; a disk's largest request is cut in some
_SMALL = 1024  # bytes; not worth compressing: a request, an answer
_WORTH = 0.9  # of its size; a block that does not become smaller goes as it is
_SAMPLES, _SAMPLE_BYTES = 8, 1024  # of a message: what does not become smaller costs little
_LEVEL = 1
_LAST_WORDS_S = 2.0  # that the peer gets to take what QEMU said before it went
PLAIN, PACKED = b"\0", b"\1"  # first byte of a message

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Bytes; see control.ServiceStats. Each field is written by one thread of one pump."""

    bytes_in: int = 0
    bytes_out: int = 0
    wire_out: int = 0
    wire_in: int = 0

    def __add__(self, other: Counts) -> Counts:
        names = [one.name for one in fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Pump:
    """`over` is called once, when all of its threads have ended and the socket is closed."""

    def __init__(self, sock: socket.socket, stream: Stream, over: Callable[[Pump], None]) -> None:
        self.service = stream.service
        self.counts = Counts()
        self.failure = ""  # why it did not end well
        self.sock = sock
        self.stream = stream
        self._over = over
        self._read_all = threading.Event()  # QEMU will say no more, and the stream knows
        self._lock = threading.Lock()
        self._live = 0

    @property
    def is_deserted(self) -> bool:
        """Whether QEMU has gone, even if nobody here can read on and see it."""
        poll = select.poll()
        try:
            poll.register(self.sock, 0)
        except (OSError, ValueError):  # closed by its last thread just now
            return True
        return bool(poll.poll(0))

    def start(self) -> None:
        works = self.works()
        self._live = len(works)
        for work in works:
            name = f"{self.service} {work.__name__.strip('_')}"
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True).start()

    def works(self) -> list[Callable[[], None]]:
        """What its threads do. Those that read from QEMU end in `finish`."""
        raise NotImplementedError

    def cut(self) -> None:
        """The stream is broken: QEMU's connection ends, and with it all threads."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """All threads have ended: what they shared may go."""

    def finish(self) -> None:
        """QEMU has closed its side, and all of it is on its way."""
        self.stream.finish()
        self._read_all.set()

    def end_writing(self) -> None:
        """The other QEMU has closed its side."""
        with contextlib.suppress(OSError):  # ours was faster
            self.sock.shutdown(socket.SHUT_WR)

    def read(self, room: memoryview, flags: int = 0) -> int:
        """Bytes that QEMU wrote into `room`; 0 at the end. One that broke off has ended."""
        try:
            return self.sock.recv_into(room, 0, flags)
        except ConnectionError:
            return 0

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Cut:
            self.cut()
        except (StreamReset, LinkClosed) as error:
            self.failure = self.failure or str(error)
            self.cut()
        except BadBlock as error:
            self.failure = str(error)
            self.stream.reset(self.failure)
            self.cut()
        except OSError as error:
            self._refused(error)
        except Exception:
            log.exception("%s", self.service)
            self.failure = "the relay has a fault; see its log"
            self.stream.reset(self.failure)
            self.cut()
        with self._lock:
            self._live -= 1
            is_last = not self._live
        if is_last:
            self.release()
            self.sock.close()
            self._over(self)

    def _refused(self, error: OSError) -> None:
        """QEMU takes no more. What it said before goes first: it may be the good end."""
        self.failure = f"QEMU does not take it: {error.strerror or error}"
        self.cut()
        with contextlib.suppress(StreamReset, LinkClosed):
            if self._read_all.wait(_LAST_WORDS_S):
                self.stream.drain(_LAST_WORDS_S)
        self.stream.reset(self.failure)


class BytePump(Pump):
    """Bytes both ways; a message that becomes smaller by compression goes compressed."""

    def works(self) -> list[Callable[[], None]]:
        return [self._outward, self._inward]

    def _outward(self) -> None:
        room = memoryview(bytearray(READ_BYTES))
        squeeze = Squeeze()
        while size := self.read(room):
            self.counts.bytes_in += size
            message = squeeze.message(room[:size])
            self.counts.wire_out += len(message)
            self.stream.send(message)
        self.finish()

    def _inward(self) -> None:
        loosen = zstandard.ZstdDecompressor()
        while (message := self.stream.receive()) is not None:
            self.counts.wire_in += len(message)
            data = opened(message, loosen)
            self.sock.sendall(data)
            self.counts.bytes_out += len(data)
        self.end_writing()


class Squeeze:
    """Makes messages of data: compressed if a look at parts of it says that this helps."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def message(self, data: memoryview) -> bytes:
        if len(data) > _SMALL and self._helps(self._sample(data)):
            packed = self._compressor.compress(data)
            if len(packed) < len(data) * _WORTH:
                return PACKED + packed
        return b"".join((PLAIN, data))

    def _helps(self, data: bytes) -> bool:
        return len(self._compressor.compress(data)) < len(data) * _WORTH

    def _sample(self, data: memoryview) -> bytes:
        places = range(0, len(data), max(len(data) // _SAMPLES, _SAMPLE_BYTES))
        return b"".join(data[place : place + _SAMPLE_BYTES] for place in places)


def opened(message: Buffer, loosen: zstandard.ZstdDecompressor) -> Buffer:
    """The bytes in a message of `Squeeze`. Raises BadBlock; at most READ_BYTES."""
    kind, data = bytes(message[:1]), memoryview(message)[1:]
    if kind == PLAIN:
        return data
    if kind != PACKED:
        raise BadBlock(reason="a message of no known kind")
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if not 0 < size <= READ_BYTES:
            raise BadBlock(reason=f"a message that claims to be {size} bytes long")
        found: bytes = loosen.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadBlock(reason="a message that cannot be decompressed") from error
    if len(found) != size:
        raise BadBlock(reason="a message that is shorter than it claims")
    return found
