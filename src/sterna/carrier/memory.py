"""QEMU's migration stream, on its way through the codec.

    source: QEMU > read, encode > pack (some threads) > send > link
    target: link > receive > unpack (some threads) > apply, write > QEMU

Each arrow is a thread that passes work on, so that all of it overlaps. Promises: when QEMU has
nothing to read for the moment, all that it wrote is on its way; what is under way between the two
QEMUs is bounded in bytes of the stream (`_allowed`), because a guest that is stopped waits for it.

The target tells how far it has come: its messages begin with a byte that says whether the rest is
QEMU's return path or the count of bytes that QEMU was given.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sterna.carrier.batch import Batch
from sterna.carrier.codec import Decoder, Encoder, pack, unpack
from sterna.carrier.control import Bottleneck, MemoryStats
from sterna.carrier.link import Stream
from sterna.carrier.pumps import Pump
from sterna.carrier.stages import Busy, Queue, Waits
from sterna.clock import monotonic
from sterna.errors.carrier import BadBlock

QUEUE = 4  # batches between two stages
RETURN_BYTES = 64 << 10  # of QEMU's return path in one message
WRITE_BYTES = 2 << 20  # that the target's QEMU may have before it: it loads while we decode
AHEAD_S = 0.1  # of the target's work that is under way, beside the round trip
MIN_AHEAD = 6 << 20  # bytes: a few batches, or the stages wait for each other
MAX_AHEAD = 256 << 20
HURRIED_S, HURRIED = 0.02, 1 << 20  # both, while a guest waits for single pages: they come after
MIN_LEVEL, FIRST_LEVEL, MAX_LEVEL = -1, 1, 3  # zstd's; lower ones save processors
_SPARE = 0.25  # share of the packing threads' time, with less a higher level costs nothing
_STREAMING = 64 << 10  # bytes since the last flush: there will be more in a moment
_MORE_MS = 1  # that moment
_TOLD = 256 << 10  # bytes between two words of progress, unless there is time
_RETURN, _PROGRESS = b"\0", b"\1"
_COUNT = struct.Struct("!Q")
_RATE_S = 0.5
_MOSTLY = 0.5  # share of the time
_SO_SNDBUFFORCE = 32


class _Rate:
    """Bytes a second over the last half second or so."""

    def __init__(self) -> None:
        self.rate = 0
        self._past: deque[tuple[float, int]] = deque(maxlen=64)

    def tick(self, now: float, total: int) -> None:
        self._past.append((now, total))
        while len(self._past) > 2 and now - self._past[1][0] >= _RATE_S:
            self._past.popleft()
        begun, first = self._past[0]
        if now > begun:
            self.rate = int((total - first) / (now - begun))


class _Shares:
    """Share of the time since the last look that something was waited for, or done."""

    def __init__(self, *waits: Waits | Busy) -> None:
        self._waits = waits
        self._last = [0.0] * len(waits)
        self._at = monotonic()

    def look(self, now: float) -> list[float]:
        seconds = [one.seconds for one in self._waits]
        passed = max(now - self._at, 1e-6)
        found = [(new - old) / passed for new, old in zip(seconds, self._last, strict=True)]
        self._last, self._at = seconds, now
        return found


class MemorySource(Pump):
    """`workers`: threads that compress; 0: the one that reads does it too."""

    def __init__(
        self,
        sock: socket.socket,
        stream: Stream,
        over: Callable[[Pump], None],
        *,
        cache_bytes: int,
        workers: int,
    ) -> None:
        super().__init__(sock, stream, over)
        self.bottleneck = Bottleneck.IDLE
        self._encoder = Encoder(cache_bytes=cache_bytes)
        self._pool = ThreadPoolExecutor(workers, "memory pack") if workers else None
        self._packing = Busy(max(workers, 1))
        self._packed: Queue[Future[bytes]] = Queue(QUEUE)
        self._level = FIRST_LEVEL
        self._quiet = Waits()  # for QEMU
        self._held = Waits()  # for the target
        self._sending = Waits()  # for the link
        self._progress = threading.Condition()
        self._applied = 0
        self._allowed = MIN_AHEAD
        self._is_hurried = False
        self._is_free = False  # nobody will tell any more how far the target is
        self._rate = _Rate()
        self._shares = _Shares(
            self._quiet, self._held, self._sending, self._packed.full, self._packing
        )

    def works(self) -> list[Callable[[], None]]:
        return [self._outward, self._send, self._inward]

    def cut(self) -> None:
        self._packed.cut()
        self._free()
        super().cut()

    def release(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _free(self) -> None:
        with self._progress:
            self._is_free = True
            self._progress.notify_all()

    @property
    def stats(self) -> MemoryStats:
        codec = self._encoder.stats
        return MemoryStats(
            stream_bytes=codec.stream_bytes,
            guest_bytes=codec.guest_bytes,
            packed_bytes=codec.packed_bytes,
            in_flight=codec.stream_bytes - self._applied,
            rate=self._rate.rate,
            level=self._level,
            pages=dict(codec.pages),
            encoded=dict(codec.encoded),
        )

    def hurry(self) -> None:
        """Post-copy: what is under way is in the way of a page that the guest waits for."""
        with self._progress:
            self._is_hurried = True
            self._progress.notify_all()

    def tick(self, rtt_s: float, *, is_limited: bool) -> None:
        """Some times a second: judge who waits for whom, and act on it."""
        now = monotonic()
        self._rate.tick(now, self._applied)
        more_s, least = (HURRIED_S, HURRIED) if self._is_hurried else (AHEAD_S, MIN_AHEAD)
        ahead = int(self._rate.rate * (rtt_s + more_s))
        with self._progress:
            self._allowed = min(max(ahead, least), MAX_AHEAD)
            self._progress.notify_all()
        quiet, held, sending, full, packing = self._shares.look(now)
        if quiet > 1 - 0.01:
            self.bottleneck = Bottleneck.IDLE
        elif sending > _MOSTLY:
            self.bottleneck = Bottleneck.LIMIT if is_limited else Bottleneck.LINK
        elif held > max(quiet, full):
            self.bottleneck = Bottleneck.TARGET
        elif quiet > full:
            self.bottleneck = Bottleneck.QEMU
        else:
            self.bottleneck = Bottleneck.ENCODE
        if packing > _MOSTLY:
            self._level = max(self._level - 1, MIN_LEVEL if sending < _MOSTLY else FIRST_LEVEL)
        elif packing < _SPARE and self.bottleneck in {Bottleneck.LINK, Bottleneck.LIMIT}:
            self._level = min(self._level + 1, MAX_LEVEL)

    def _outward(self) -> None:
        """Read and encode; flush when the socket has run dry."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        encoder = self._encoder
        fresh = 0  # bytes since the last flush
        while True:
            while self._is_far_ahead:
                if fresh and self._is_hurried:  # the target may wait for just that
                    self._put(encoder.flush())
                    fresh = 0
                self._wait_for_target(has_more=fresh > 0)
            try:
                size = self.read(encoder.room(), socket.MSG_DONTWAIT)
            except BlockingIOError:
                with self._quiet:
                    if fresh >= _STREAMING and poll.poll(_MORE_MS):
                        continue
                if fresh:
                    self._put(encoder.flush())
                    fresh = 0
                with self._quiet:
                    poll.poll()
                continue
            if not size:
                break
            self.counts.bytes_in += size
            batches = encoder.received(size)
            fresh = _STREAMING if batches else fresh + size
            self._put(batches)
        self._put(encoder.flush())
        self._packed.finish()

    @property
    def _is_far_ahead(self) -> bool:
        """Whether the target has so much before it that it must get no more now."""
        return not self._is_free and self.counts.bytes_in - self._applied >= self._allowed

    def _wait_for_target(self, *, has_more: bool) -> None:
        """`has_more`: something is in no batch yet, and goes first if a hurry begins."""
        with self._progress, self._held:
            self._progress.wait_for(
                lambda: not self._is_far_ahead or (has_more and self._is_hurried)
            )

    def _put(self, batches: list[Batch]) -> None:
        for batch in batches:
            if self._pool is not None:
                self._packed.put(self._pool.submit(self._packing.do, pack, batch, self._level))
            else:
                done: Future[bytes] = Future()
                done.set_result(self._packing.do(pack, batch, self._level))
                self._packed.put(done)

    def _send(self) -> None:
        while (packed := self._packed.get()) is not None:
            block = packed.result()
            self._encoder.stats.packed(block)
            self.counts.wire_out += len(block)
            with self._sending:
                self.stream.send(block)
        self.finish()

    def _inward(self) -> None:
        """The return path, and how far the target has come."""
        while (message := self.stream.receive()) is not None:
            self.counts.wire_in += len(message)
            kind, data = message[:1], message[1:]
            if kind == _RETURN:
                self.sock.sendall(data)
                self.counts.bytes_out += len(data)
            elif kind == _PROGRESS and len(data) == _COUNT.size:
                self._advance(_COUNT.unpack(data)[0])
            else:
                raise BadBlock(reason="a message of no known kind")
        self._free()
        self.end_writing()

    def _advance(self, applied: int) -> None:
        if not self._applied <= applied <= self.counts.bytes_in:
            raise BadBlock(reason=f"it has loaded {applied} bytes, which cannot be")
        with self._progress:
            self._applied = applied
            self._progress.notify_all()


class MemoryTarget(Pump):
    def __init__(
        self,
        sock: socket.socket,
        stream: Stream,
        over: Callable[[Pump], None],
        *,
        cache_bytes: int,
        workers: int,
    ) -> None:
        super().__init__(sock, stream, over)
        self.bottleneck = Bottleneck.IDLE
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, WRITE_BYTES)
        self._decoder = Decoder(cache_bytes=cache_bytes)
        self._pool = ThreadPoolExecutor(max(workers, 1), "memory unpack")
        self._unpacked: Queue[Future[Batch]] = Queue(QUEUE)
        self._saying = threading.Lock()
        self._told = 0
        self._writing = Waits()  # for QEMU
        self._rate = _Rate()
        self._shares = _Shares(self._unpacked.empty, self._writing)

    def works(self) -> list[Callable[[], None]]:
        return [self._inward, self._apply, self._outward]

    def cut(self) -> None:
        self._unpacked.cut()
        super().cut()

    def release(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def stats(self) -> MemoryStats:
        return MemoryStats(
            stream_bytes=self.counts.bytes_out,
            packed_bytes=self.counts.wire_in,
            rate=self._rate.rate,
        )

    def hurry(self) -> None:
        """The source does."""

    def tick(self, rtt_s: float, *, is_limited: bool) -> None:  # noqa: ARG002 - as the source's
        now = monotonic()
        self._rate.tick(now, self.counts.bytes_out)
        empty, writing = self._shares.look(now)
        if not self._rate.rate:
            self.bottleneck = Bottleneck.IDLE
        elif empty > _MOSTLY:
            self.bottleneck = Bottleneck.LINK
        else:
            self.bottleneck = Bottleneck.TARGET if writing > _MOSTLY else Bottleneck.ENCODE

    def _inward(self) -> None:
        while (block := self.stream.receive()) is not None:
            self.counts.wire_in += len(block)
            self._unpacked.put(self._pool.submit(unpack, block))
        self._unpacked.finish()

    def _apply(self) -> None:
        while (unpacked := self._unpacked.get()) is not None:
            for data in self._decoder.apply(unpacked.result()):
                with self._writing:
                    self.sock.sendall(data)
                self.counts.bytes_out += len(data)
            self._tell()
        self.end_writing()

    def _tell(self) -> None:
        written = self.counts.bytes_out
        if written - self._told >= _TOLD or not self._unpacked:
            self._told = written
            try:
                self._say(_PROGRESS + _COUNT.pack(written))
            except ValueError:  # QEMU has closed its side: the stream is finished in this direction
                return

    def _say(self, message: bytes) -> None:
        with self._saying:
            self.counts.wire_out += len(message)
            self.stream.send(message)

    def _outward(self) -> None:
        """QEMU's return path."""
        room = memoryview(bytearray(1 + RETURN_BYTES))
        while size := self.read(room[1:]):
            self.counts.bytes_in += size
            self._say(bytes(room[: 1 + size]))
        self.finish()
