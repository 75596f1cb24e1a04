"""A stream as its user sees it: messages in order, both ways, whatever becomes of channels.

One thread may send and one may receive at the same time; `finish` and `reset` may come from any.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sterna.carrier import frames
from sterna.carrier.frames import Buffer
from sterna.carrier.inbox import Inbox, Piece
from sterna.carrier.outbox import Outbox
from sterna.errors import LinkClosed, StreamReset

if TYPE_CHECKING:
    from sterna.carrier.traffic import Traffic

QUEUE = (
    128 << 10
)  # bytes that `send` leaves for channels to take, so that they need not wait for it


class Stream:
    """Made by a link's `open` and `accept` only."""

    def __init__(self, traffic: Traffic, number: int, service: str, *, opens: bool) -> None:
        self.number = number
        self.service = service
        self.outbox = Outbox(number, service if opens else None)
        self.inbox = Inbox(1 if opens else 0)
        self.broken: str | None = None  # reason of a reset
        self._traffic = traffic
        self.sent = threading.Condition(traffic.lock)  # room, or an end
        self.arrived = threading.Condition(traffic.lock)

    def send(self, message: Buffer) -> None:
        """Queue a message of at most MAX_MESSAGE bytes; wait until nearly all of it is on its way.

        So it waits while the peer does not consume. `bytes` are kept without a copy. Raises
        StreamReset, LinkClosed; ValueError for one too long or after `finish`.
        """
        if len(message) > frames.MAX_MESSAGE:
            raise ValueError(f"a message of {len(message)} bytes: at most {frames.MAX_MESSAGE}")
        data = message if isinstance(message, bytes) else bytes(message)
        with self._traffic.lock:
            self._check()
            if self.outbox.finishing:
                raise ValueError("sent after finish")
            self.outbox.push(data)
            self._traffic.wake()
            while self.outbox.queued > QUEUE:
                self.sent.wait()
                self._check()

    def receive(self) -> bytes | None:
        """The next message, None once the peer has finished.

        Calling it tells the peer that the message before has been used up. Raises StreamReset,
        LinkClosed; messages that have arrived before either are lost then.
        """
        with self._traffic.lock:
            self._traffic.release(self)
            parts = None if self.inbox.finished else self._traffic.collect(self)
            while parts is None and not self.inbox.finished:
                self._check_reader()
                self.inbox.is_awaited = True
                self.arrived.wait()
                parts, self.inbox.complete = self.inbox.complete, None
        if parts is None:
            return None
        message = _join(parts)
        self._traffic.buffers.give_back(parts)
        return message

    def finish(self) -> None:
        """Nothing more will be sent; what was goes on. Returns at once; see `drain`."""
        with self._traffic.lock:
            if not self.outbox.finishing:
                self.outbox.finishing = True
                self._traffic.wake()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until the peer has consumed all that was sent, `finish` too. Whether it has.

        Raises StreamReset, LinkClosed.
        """
        with self._traffic.lock:
            self.sent.wait_for(self._is_settled, timeout_s)
            if self.broken is not None or not self.outbox.is_drained:
                self._check()
            return self.outbox.is_drained

    def reset(self, reason: str) -> None:
        """Break it off in both directions; the peer is told the reason. Harmless at an end."""
        with self._traffic.lock:
            self._traffic.reset(self, reason)

    def _is_settled(self) -> bool:
        return self.outbox.is_drained or self.broken is not None or bool(self._traffic.closed)

    def _check(self) -> None:
        if self.broken is not None:
            raise StreamReset(service=self.service, reason=self.broken)
        if self._traffic.closed is not None and not self.outbox.is_done:
            raise LinkClosed(reason=self._traffic.closed)

    def _check_reader(self) -> None:
        if self.broken is not None:
            raise StreamReset(service=self.service, reason=self.broken)
        if self._traffic.closed is not None:
            raise LinkClosed(reason=self._traffic.closed)


def _join(parts: list[Piece]) -> bytes:
    if len(parts) == 1 and len(parts[0].data) == parts[0].length:
        return bytes(parts[0].data)
    return b"".join(memoryview(part.data)[: part.length] for part in parts)
