"""All streams of a link: what goes next, what arrives, what is sent again. No thread, no socket.

All methods are called with `lock` held. Memory is bounded against any
peer: by MAX_STREAMS, by the windows, and by POOL above the smallest windows.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from sterna.carrier import frames
from sterna.carrier.bucket import Bucket
from sterna.carrier.buffers import Buffers
from sterna.carrier.duplex import QUEUE, Stream
from sterna.carrier.frames import BadFrame, Header
from sterna.carrier.inbox import Piece
from sterna.carrier.notes import Notes
from sterna.carrier.numbers import LATE, Numbers
from sterna.carrier.outbox import Frame
from sterna.clock import monotonic
from sterna.errors import LinkClosed, StreamReset

_KEPT = frames.POOL + 2 * LATE * (frames.MIN_WINDOW + frames.MAX_PAYLOAD)  # bytes, at most
_PER_FRAME = 154  # bytes on the wire beside payload and packets: headers of TLS, some of packets
_PACKETS = 1 + 66 / 1448  # headers of TCP, IP, Ethernet


class Carrier(Protocol):
    """A channel, as far as traffic knows it."""

    flying: dict[Frame, None]  # sent on it and not acknowledged
    is_idle: bool  # waits for something to send
    is_stalled: bool
    frame_size: int  # bytes of payload that suit its speed

    def wake(self) -> None: ...


@dataclass(slots=True)
class Load:
    """What a channel sends next. Nothing at all and `delay` 0: it will be woken."""

    control: bytes = b""
    header: bytes = b""
    payload: memoryview | None = None
    delay: float = 0.0  # seconds that the limit wants it to wait


class Traffic:
    def __init__(self, *, lead: bool, limit: int | None) -> None:
        self.lock = threading.Lock()
        self.closed: str | None = None
        self.carriers: list[Carrier] = []
        self.streams: dict[int, Stream] = {}
        self.buffers = Buffers()
        self.bucket = Bucket(limit)
        self.retransmitted = 0
        self.charged = 0.0  # bytes on the wire, as estimated when they were taken
        self._payload_out = 0  # of streams that have ended
        self._payload_in = 0
        self._kept = 0  # cost of all that waits in inboxes
        self._accepting = threading.Condition(self.lock)
        self._came: deque[Stream] = deque()
        self._numbers = Numbers(lead=lead)
        self._notes = Notes()
        self._turn: deque[int] = deque()  # streams, in the order of their turns
        self._again: deque[Frame] = deque()

    # ---- for users of streams

    def open(self, service: str) -> Stream:
        name = service.encode()
        if not 0 < len(name) <= frames.MAX_SERVICE:
            raise ValueError(f"{service!r} is no name of a service")
        self.check_open()
        if sum(1 for number in self.streams if self._numbers.is_ours(number)) >= frames.MAX_STREAMS:
            raise StreamReset(service=service, reason="too many streams are open")
        stream = self._add(self._numbers.take(), service, opens=True)
        self.wake()
        return stream

    def accept(self) -> Stream:
        while not self._came:
            self.check_open()
            self._accepting.wait()
        return self._came.popleft()

    def check_open(self) -> None:
        if self.closed is not None:
            raise LinkClosed(reason=self.closed)

    def release(self, stream: Stream) -> None:
        before = stream.inbox.cost
        stream.inbox.release()
        self._consumed(stream, before)

    def collect(self, stream: Stream) -> list[Piece] | None:
        before = stream.inbox.cost
        parts = stream.inbox.collect()
        self._consumed(stream, before)
        return parts

    def _consumed(self, stream: Stream, before: int) -> None:
        self._kept += stream.inbox.cost - before
        if stream.inbox.ack_due:
            self._notes.acknowledge(stream)
            self.wake()
        self._retire(stream)

    def reset(self, stream: Stream, reason: str) -> None:
        if self.streams.get(stream.number) is stream and self.closed is None:
            self._break(stream, reason)
            self._notes.reset(stream.number, reason)
            self.wake()

    def close(self, reason: str) -> None:
        """Every wait ends, in LinkClosed."""
        if self.closed is None:
            self.closed = reason
            for stream in self.streams.values():
                stream.sent.notify_all()
                stream.arrived.notify_all()
            self._accepting.notify_all()
            self._again.clear()

    @property
    def payload(self) -> tuple[int, int]:
        """Bytes of messages out and in."""
        live = self.streams.values()
        return (
            self._payload_out + sum(stream.outbox.payload for stream in live),
            self._payload_in + sum(stream.inbox.payload for stream in live),
        )

    @property
    def in_flight(self) -> int:
        return sum(stream.outbox.outstanding for stream in self.streams.values())

    # ---- for channels

    def wake(self) -> None:
        """There may be something to send: one idle channel is told."""
        for carrier in self.carriers:
            if carrier.is_idle and not carrier.is_stalled:
                carrier.is_idle = False
                carrier.wake()
                return

    def take(self, carrier: Carrier) -> Load:
        """What `carrier` sends next; it keeps what it flies until that is acknowledged."""
        if carrier.is_stalled:
            carrier.is_idle = True
            return Load()
        load = Load(control=self._notes.take())
        if self.bucket.rate is not None and self._has_turn():
            load.delay = self.bucket.delay(monotonic())
        if not load.delay and (frame := self._next(carrier.frame_size)):
            self._fly(frame, carrier, load)
        size = len(load.control) + len(load.header) + len(load.payload or b"")
        if size:
            wire = size * _PACKETS + _PER_FRAME
            self.charged += wire
            self.bucket.charge(wire)
        else:
            carrier.is_idle = not load.delay
        if size and len(self.carriers) > 1 and self._has_turn():
            self.wake()
        return load

    def _pool(self) -> int:
        if len(self.streams) <= frames.POOL // frames.MAX_WINDOW:
            return frames.POOL  # they cannot use it up
        return frames.POOL - sum(
            max(0, stream.outbox.outstanding - frames.MIN_WINDOW)
            for stream in self.streams.values()
        )

    def _has_turn(self) -> bool:
        if self._again:
            return True
        pool = self._pool()
        return any(
            stream.outbox.is_pending and stream.outbox.may_cut(pool)
            for stream in self.streams.values()
        )

    def _next(self, most: int) -> Frame | None:
        while self._again:
            frame = self._again.popleft()
            frame.waits = False
            if frame.stream in self.streams and frame.outbox.is_wanted(frame):
                self.retransmitted += 1
                frame.flags |= frames.ASK
                return frame
        pool = self._pool()
        for _ in range(len(self._turn)):
            stream = self.streams.get(self._turn[0])
            if stream is None:
                self._turn.popleft()
                continue
            self._turn.rotate(-1)
            outbox = stream.outbox
            if outbox.is_pending and outbox.may_cut(pool):
                frame = outbox.cut(most)
                if outbox.queued <= QUEUE:
                    stream.sent.notify_all()
                return frame
        return None

    def _fly(self, frame: Frame, carrier: Carrier, load: Load) -> None:
        inbox = self.streams[frame.stream].inbox
        self._notes.acknowledged(frame.stream)
        consumed, ahead = inbox.acknowledge()
        frame.carriers.append(carrier)
        carrier.flying[frame] = None
        load.header = frames.pack(
            frames.DATA,
            flags=frame.flags,
            stream=frame.stream,
            length=len(frame.data),
            number=frame.number,
            consumed=consumed,
            ahead=ahead,
        )
        load.payload = frame.data

    def attach(self, carrier: Carrier) -> None:
        """A channel is up. Both sides tell what they have."""
        self.carriers.append(carrier)
        self._notes.repeat(self.streams)
        self.wake()

    def detach(self, carrier: Carrier) -> None:
        if carrier in self.carriers:
            self.carriers.remove(carrier)
        self.send_again(carrier)
        for frame in carrier.flying:
            frame.carriers.remove(carrier)
        carrier.flying.clear()

    def send_again(self, carrier: Carrier) -> None:
        """What it carries goes on others too, before anything new."""
        lost = [
            frame for frame in carrier.flying if not frame.waits and frame.outbox.is_wanted(frame)
        ]
        for frame in lost:
            frame.waits = True
        self._again.extend(sorted(lost, key=lambda frame: frame.number))
        self._notes.repeat(self.streams)
        self.wake()

    def tick(self, seconds: float, rtt_s: float, queue_s: float) -> None:
        """Some times a second: windows follow their readers, readers tell what they have used."""
        for stream in self.streams.values():
            stream.outbox.adapt(seconds, rtt_s, queue_s)
            stream.inbox.remind()
            if stream.inbox.ack_due:
                self._notes.acknowledge(stream)
        if self._notes or self._has_turn():
            self.wake()

    def farewell(self) -> bytes:
        """All acknowledgements that are not told yet, as frames: the last ones of the link."""
        for stream in self.streams.values():
            stream.inbox.remind()
            if stream.inbox.ack_due:
                self._notes.acknowledge(stream)
        return self._notes.take()

    # ---- what arrives

    def admit(self, header: Header) -> bool:
        """Whether the payload of a DATA frame is to be kept. Raises BadFrame."""
        if self.closed is not None:
            return False
        stream = self._find(header.stream)
        if stream is None:
            self._gone(header.stream)
            return False
        if not stream.inbox.admit(header.number, header.length):
            return False
        if self._kept + header.length > _KEPT:
            raise BadFrame("more than all windows together")
        return True

    def arrive(self, header: Header, data: bytearray) -> None:
        """A whole frame of a stream. Raises BadFrame."""
        if self.closed is not None:
            return
        if header.kind == frames.DATA:
            if self.admit(header):
                self._insert(header, data)
        elif header.kind == frames.RESET:
            self._peer_reset(header.stream, frames.text(memoryview(data)[: header.length]))
            return
        elif header.kind == frames.GONE:
            self._peer_gone(header.stream)
            return
        self._acknowledged(header)

    def _acknowledged(self, header: Header) -> None:
        stream = self.streams.get(header.stream)
        if stream is None:
            # Its opening may be on its way on another channel.
            is_early = (
                not self._numbers.is_ours(header.stream) and header.consumed + header.ahead <= 1
            )
            if not is_early and not self._numbers.is_used(header.stream):
                raise BadFrame(f"an acknowledgement for stream {header.stream}, not open yet")
        elif stream.outbox.acknowledge(header.consumed, header.ahead):
            if stream.outbox.is_drained:
                stream.sent.notify_all()
            self._retire(stream)
            if self._again or stream.outbox.is_pending:
                self.wake()

    def _insert(self, header: Header, data: bytearray) -> None:
        stream = self.streams[header.stream]
        inbox = stream.inbox
        before = inbox.cost
        if header.flags & frames.OPEN:
            stream.service = frames.text(memoryview(data)[: header.length])
        piece = Piece(header.flags, data, header.length)
        is_complete = inbox.insert(header.number, piece)
        self._consumed(stream, before)
        if header.flags & frames.OPEN:
            self.collect(stream)
            self.release(stream)
            self._came.append(stream)
            self._accepting.notify()
        if is_complete:
            stream.arrived.notify()

    def _find(self, number: int) -> Stream | None:
        """The stream; made if it is a new one of the peer's. None if it has ended. BadFrame."""
        stream = self.streams.get(number)
        if stream is not None or self._numbers.is_used(number):
            return stream
        theirs = sum(1 for one in self.streams if not self._numbers.is_ours(one))
        if theirs >= LATE:
            raise BadFrame("too many streams")
        self._numbers.see(number)
        return self._add(number, "", opens=False)

    def _peer_reset(self, number: int, reason: str) -> None:
        stream = self._find(number)
        if stream is not None:
            self._break(stream, reason)
        self._notes.knows(number)  # both did at once: it knows
        self._gone(number)

    def _peer_gone(self, number: int) -> None:
        if number not in self.streams and not self._numbers.is_used(number):
            raise BadFrame(f"the end of stream {number}, which was never opened")
        self._notes.knows(number)
        stream = self.streams.get(number)
        if stream is not None:
            # It has seen both ends, or we speak to somebody who has lost count.
            if stream.outbox.finishing and stream.inbox.finished:
                stream.outbox.acknowledge(stream.outbox.next, 0)
                stream.sent.notify_all()
                self._retire(stream)
            else:
                self._break(stream, "the other end does not know it any more")

    def _gone(self, number: int) -> None:
        self._notes.gone(number)
        self.wake()

    # ---- lives of streams

    def _add(self, number: int, service: str, *, opens: bool) -> Stream:
        stream = self.streams[number] = Stream(self, number, service, opens=opens)
        self._turn.append(number)
        return stream

    def _break(self, stream: Stream, reason: str) -> None:
        stream.broken = reason
        self._kept -= stream.inbox.cost
        stream.inbox.clear()
        self._forget(stream)
        stream.outbox.clear()
        stream.sent.notify_all()
        stream.arrived.notify_all()

    def _retire(self, stream: Stream) -> None:
        if stream.outbox.is_done and stream.inbox.finished and stream.broken is None:
            if stream.inbox.ack_due:
                self._gone(stream.number)  # as good as the last acknowledgement
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.number, None):
            self._notes.acknowledged(stream.number)
            self._payload_out += stream.outbox.payload
            self._payload_in += stream.inbox.payload
