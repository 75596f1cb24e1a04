"""The receiving half of a stream: order, messages, what is acknowledged. Pure, not thread-safe.

A frame counts as consumed when the reader has asked for the message after its own. The frames of
a message that the reader is waiting for are consumed as they come, all but the last: so a message
may be larger than the window.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from sterna.carrier import frames
from sterna.carrier.frames import BadFrame, Buffer

_ACK_AFTER = 1 << 20  # bytes consumed, if the peer never asks


class Piece(NamedTuple):
    flags: int
    data: Buffer  # its first `length` bytes count
    length: int


class Inbox:
    """`first`: number of the first frame; 1 if the other direction opened the stream."""

    def __init__(self, first: int) -> None:
        self.expected = first  # number of the next frame in order
        self.consumed = first
        self.cost = 0  # of frames that have arrived and are not consumed
        self.payload = 0  # bytes of messages given to the reader
        self.finished = False  # the reader knows that nothing follows
        self.is_awaited = False  # a reader waits: frames are consumed as they come
        self.complete: list[Piece] | None = None  # the message that it waited for
        self.ack_due = False
        self._ahead: dict[int, Piece] = {}
        self._ready: deque[Piece] = deque()
        self._arriving = 0  # bytes, in order, of the message that is not here completely
        self._closed = False  # FINISH has come
        self._parts: list[Piece] = []  # of the message that the reader waits for
        self._held: Piece | None = None  # last frame of the message that the reader has
        self._since_ack = 0

    @property
    def ahead(self) -> int:
        """Frames in order that are kept and not consumed."""
        return self.expected - self.consumed

    def admit(self, number: int, length: int) -> bool:
        """Whether this frame is new. Raises BadFrame for one that no honest peer sends."""
        if number < self.expected or number in self._ahead:
            return False
        frames.check_number(number, self.consumed)
        if self.cost + length > frames.MAX_WINDOW + frames.MAX_PAYLOAD:
            raise BadFrame("more than the largest window")
        return True

    def insert(self, number: int, piece: Piece) -> bool:
        """Keep a frame that `admit` lets in; whether a reader that waits has what it wants."""
        self.cost += frames.cost(piece.length)
        if number != self.expected:
            self._ahead[number] = piece
            return False
        self._append(piece)
        while self._ahead and self.expected in self._ahead:
            self._append(self._ahead.pop(self.expected))
        if not self.is_awaited:
            return False
        self.complete = self.collect()
        self.is_awaited = self.complete is None and not self.finished
        return not self.is_awaited

    def release(self) -> None:
        """The reader needs its message no more."""
        if self._held is not None:
            self._consume(self._held)
            self._held = None

    def collect(self) -> list[Piece] | None:
        """The frames of the next message, once all are here. See `finished` first."""
        while self._ready:
            piece = self._ready.popleft()
            if piece.flags & frames.FINISH:
                self.finished = True
                self._consume(piece)
                return None
            self._parts.append(piece)
            if piece.flags & (frames.END | frames.OPEN):
                self._held = piece
                parts, self._parts = self._parts, []
                if piece.flags & frames.END:
                    self.payload += sum(part.length for part in parts)
                return parts
            self._consume(piece)
        return None

    def remind(self) -> None:
        """Acknowledge what was consumed since the last time, asked for or not."""
        self.ack_due |= self._since_ack > 0

    def clear(self) -> None:
        """Forget what is here: nobody will read it."""
        self._ahead.clear()
        self._ready.clear()
        self._parts.clear()
        self._held = self.complete = None
        self.cost = 0

    def acknowledge(self) -> tuple[int, int]:
        """`consumed` and `ahead` for a header that goes now."""
        self.ack_due = False
        self._since_ack = 0
        return self.consumed, self.expected - self.consumed

    def _append(self, piece: Piece) -> None:
        if self._closed:
            raise BadFrame("frames after the last one")
        self.expected += 1
        self._ready.append(piece)
        self._arriving += piece.length
        if self._arriving > frames.MAX_MESSAGE:
            raise BadFrame(f"a message of more than {frames.MAX_MESSAGE} bytes")
        if piece.flags & frames.FINISH:
            if self._arriving:
                raise BadFrame("the end of a stream within a message")
            self._closed = True
        if piece.flags & (frames.END | frames.OPEN):
            self._arriving = 0

    def _consume(self, piece: Piece) -> None:
        size = frames.cost(piece.length)
        self.consumed += 1
        self.cost -= size
        self._since_ack += size
        if piece.flags & frames.ASK or self._since_ack >= _ACK_AFTER:
            self.ack_due = True
