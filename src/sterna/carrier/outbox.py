"""The sending half of a stream: frames, the window, what is not acknowledged. Pure, not thread-safe.

The window follows the reader: about what it consumes in a round trip and 50 ms. So a link is full
and little is under way when a guest stops.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sterna.carrier import frames
from sterna.carrier.frames import BadFrame

AHEAD_S = 0.05  # work that the reader has before it, beside what the round trip takes
_FIRST_WINDOW = 1 << 20  # bytes, until a rate is known
_SLOWER = 0.3  # share of a lower sample in the rate
_GROWTH, _DECAY = 1.5, 0.98  # of a window that nothing but itself holds back, in each `adapt`


class Frame:
    """A frame that was sent, or is to be sent again. `carriers`: channels that have it."""

    __slots__ = ("carriers", "data", "flags", "number", "outbox", "stream", "waits")

    def __init__(self, outbox: Outbox, number: int, flags: int, data: memoryview) -> None:
        self.outbox = outbox
        self.stream = outbox.stream
        self.number = number
        self.flags = flags
        self.data = data
        self.carriers: list[Any] = []
        self.waits = False  # to be sent again


class Outbox:
    """`service`: its name, to be sent first, if this side opened the stream."""

    def __init__(self, stream: int, service: str | None) -> None:
        self.stream = stream
        self.next = 0 if service is not None else 1  # number of the next frame
        self.acked = self.next  # all below are consumed by the reader
        self.received = self.next  # all below have arrived there
        self.outstanding = 0  # cost of frames that were sent and are not consumed
        self.queued = 0  # bytes of messages that are not cut yet
        self.payload = 0  # bytes cut so far
        self.window = _FIRST_WINDOW
        self.blocked = False  # the window held it back since the last `adapt`
        self.rate = 0.0  # bytes a second that the reader consumes
        self.finishing = False
        self._finished = False  # FINISH has been cut
        self._service = service
        self._messages: deque[memoryview] = deque()
        self._unacked: deque[Frame] = deque()
        self._is_reader_late = False  # most of what is not consumed has arrived
        self._asked = 0  # cost of frames since the last ASK
        self._consumed = 0  # cost acknowledged since the last `adapt`

    def push(self, message: bytes) -> None:
        self._messages.append(memoryview(message))
        self.queued += len(message)

    @property
    def is_pending(self) -> bool:
        """Something is to be cut."""
        return bool(
            self._messages or self._service is not None or (self.finishing and not self._finished)
        )

    @property
    def is_drained(self) -> bool:
        """Everything has been consumed by the peer."""
        return not self._unacked and not self.is_pending

    @property
    def is_done(self) -> bool:
        return self._finished and not self._unacked

    def may_cut(self, pool: int) -> bool:
        """Whether the window lets a frame go; `pool` is left for all streams together."""
        if self.outstanding < frames.MIN_WINDOW:
            return True
        if self.outstanding < self.window and pool > 0:
            return True
        self.blocked = True
        return False

    def cut(self, most: int) -> Frame:
        """The next frame, with at most so many bytes. Only if something is pending."""
        if self._service is not None:
            flags, data = frames.OPEN, memoryview(self._service.encode())
            self._service = None
        elif self._messages:
            message = self._messages.popleft()
            data, rest = message[:most], message[most:]
            flags = 0 if rest else frames.END
            if rest:
                self._messages.appendleft(rest)
            self.queued -= len(data)
            self.payload += len(data)
        else:
            flags, data = frames.FINISH, memoryview(b"")
            self._finished = True
        size = frames.cost(len(data))
        self._asked += size
        if self._asked >= self.window // 4 or not self.is_pending:
            flags |= frames.ASK
            self._asked = 0
        frame = Frame(self, self.next, flags, data)
        self.next += 1
        self.outstanding += size
        self._unacked.append(frame)
        return frame

    def acknowledge(self, consumed: int, ahead: int) -> bool:
        """Whether it tells that more was consumed. Raises BadFrame if that was never sent."""
        if consumed + ahead > self.next:
            raise BadFrame(
                f"acknowledges frame {consumed + ahead - 1} where {self.next} is the next to be sent"
            )
        self.received = max(self.received, consumed + ahead)
        if consumed <= self.acked:
            return False
        self.acked = consumed
        before = self.outstanding
        while self._unacked and self._unacked[0].number < consumed:
            frame = self._unacked.popleft()
            self.outstanding -= frames.cost(len(frame.data))
            for carrier in frame.carriers:
                carrier.flying.pop(frame, None)
        self._consumed += before - self.outstanding
        self._is_reader_late |= ahead > 1 and 2 * ahead > len(self._unacked)
        return True

    def is_wanted(self, frame: Frame) -> bool:
        """Whether the peer may lack this frame."""
        return frame.number >= self.received

    def adapt(self, seconds: float, rtt_s: float, queue_s: float) -> None:
        """Set the window by what was consumed in the last `seconds`.

        If neither the reader nor a queue in the network (`queue_s`) holds back what the window
        holds back, it is the threads of a busy host that are late: the window grows.
        """
        sample = self._consumed / seconds
        self._consumed = 0
        if sample > self.rate:
            self.rate = sample
        elif self.blocked:  # else there was not more to send
            self.rate += (sample - self.rate) * _SLOWER
        wanted = self.rate * (rtt_s + AHEAD_S) if self.rate else self.window
        if not self._is_reader_late and queue_s < AHEAD_S / 2:
            wanted = max(wanted, self.window * (_GROWTH if self.blocked else _DECAY))
        self.window = min(max(int(wanted), frames.MIN_WINDOW), frames.MAX_WINDOW)
        self.blocked = self._is_reader_late = False

    def clear(self) -> None:
        """Forget everything: nobody will read it."""
        for frame in self._unacked:
            for carrier in frame.carriers:
                carrier.flying.pop(frame, None)
        self._unacked.clear()
        self._messages.clear()
        self._service = None
        self.queued = self.outstanding = 0
        self._finished = self.finishing = True
