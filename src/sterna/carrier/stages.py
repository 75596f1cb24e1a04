"""Threads that pass work on: a short queue between two of them, and who waited for whom."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from sterna.clock import monotonic

T = TypeVar("T")
P = ParamSpec("P")


class Cut(Exception):
    """The queue was cut: what the other thread does has failed, and it has told why."""


class Waits:
    """Seconds that one thread has waited for something. Read by others while it waits."""

    __slots__ = ("_since", "_sum")

    def __init__(self) -> None:
        self._sum = 0.0
        self._since: float | None = None

    def __enter__(self) -> None:
        self._since = monotonic()

    def __exit__(self, *_: object) -> None:
        since, self._since = self._since, None
        if since is not None:
            self._sum += monotonic() - since

    @property
    def seconds(self) -> float:
        since = self._since
        return self._sum + (monotonic() - since if since is not None else 0.0)


class Busy:
    """Seconds that `workers` threads have worked, on average. Counted when a piece is done."""

    __slots__ = ("_lock", "_sum", "_workers")

    def __init__(self, workers: int) -> None:
        self._lock = threading.Lock()
        self._sum = 0.0
        self._workers = workers

    def do(self, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        began = monotonic()
        try:
            return work(*args, **more)
        finally:
            with self._lock:
                self._sum += monotonic() - began

    @property
    def seconds(self) -> float:
        return self._sum / self._workers


class Queue(Generic[T]):
    """At most `room` items between one thread that puts and one that gets."""

    def __init__(self, room: int) -> None:
        self.full = Waits()  # of the thread that puts
        self.empty = Waits()
        self._room = room
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._finished = False
        self._cut = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Waits while it is full. Raises Cut."""
        with self._lock:
            if len(self._items) >= self._room:
                with self.full:
                    self._changed.wait_for(lambda: self._cut or len(self._items) < self._room)
            if self._cut:
                raise Cut
            self._items.append(item)
            self._changed.notify()

    def get(self) -> T | None:
        """The next item, None after the last. Raises Cut."""
        with self._lock:
            if not self._items:
                with self.empty:
                    self._changed.wait_for(lambda: self._cut or self._finished or self._items)
            if self._cut:
                raise Cut
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify()
            return item

    def finish(self) -> None:
        """Nothing more will be put."""
        with self._lock:
            self._finished = True
            self._changed.notify_all()

    def cut(self) -> None:
        """What is in it is lost; both threads are told."""
        with self._lock:
            self._cut = True
            self._items.clear()
            self._changed.notify_all()
