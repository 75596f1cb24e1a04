"""Who follows what happens: bounded queues, filled by one loop, read by its tasks.

Promises: `publish` never waits for a reader. A reader that falls too far behind is cut off, and can
tell: its iteration ends with `is_cut` true. Events reach a reader in order, each once.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

from sterna.operations import plain

MAX_BEHIND = 1000  # events that a reader may lag: some 250 kB, minutes of a move
MAX_KEPT = 1000  # host-wide events that a reader may come back for


@dataclass(frozen=True, slots=True)
class Event:
    """`data` is JSON text; `number` grows by one within its source."""

    number: int
    kind: str  # progress | state | log; host-wide also: operation | vm | reset
    data: str


class Subscription:
    """An async iterator of events; ends when its source ends, or when the reader was too slow."""

    def __init__(self, limit: int = MAX_BEHIND) -> None:
        self.is_cut = False
        self._limit = limit
        self._events: deque[Event] = deque()
        self._ended = False
        self._wake = asyncio.Event()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()

    def offer(self, event: Event) -> bool:
        """Queue it; False if the reader is too far behind and has been cut off."""
        if self._ended:
            return False
        if len(self._events) >= self._limit:
            self.is_cut = True
            self._events.clear()
            self.end()
            return False
        self._events.append(event)
        self._wake.set()
        return True

    def end(self) -> None:
        """Nothing more will come; what is queued is still read."""
        self._ended = True
        self._wake.set()


class Subscribers:
    """The readers of one source."""

    def __init__(self) -> None:
        self._all: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, limit: int = MAX_BEHIND) -> Subscription:
        subscription = Subscription(limit)
        self._all.add(subscription)
        return subscription

    def discard(self, subscription: Subscription) -> None:
        self._all.discard(subscription)

    def send(self, event: Event) -> None:
        for subscription in [one for one in self._all if not one.offer(event)]:
            self._all.discard(subscription)

    def end(self) -> None:
        for subscription in self._all:
            subscription.end()
        self._all.clear()


class Hub:
    """Host-wide events: what changed. `epoch` names this life of the daemon; numbers are its own."""

    def __init__(self) -> None:
        self.epoch = uuid.uuid4().hex[:8]
        self.number = 0
        self.subscribers = Subscribers()
        self._kept: deque[Event] = deque(maxlen=MAX_KEPT)

    def publish(self, kind: str, value: Any) -> None:
        """Tell everybody; `value` is a model object, a dict of JSON types, or JSON text."""
        self.number += 1
        data = value if isinstance(value, str) else plain.text(value)
        event = Event(self.number, kind, data)
        self._kept.append(event)
        self.subscribers.send(event)

    def since(self, number: int) -> list[Event] | None:
        """Kept events after `number`; None if some of them are gone, or it is not of this life."""
        if not 0 <= number <= self.number:
            return None
        if number < self.number - len(self._kept):
            return None
        return [event for event in self._kept if event.number > number]
