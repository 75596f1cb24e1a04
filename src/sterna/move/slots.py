"""Whose turn is it? Moves beyond the limit wait, first come, first served.

`Slots` is the source's: its moves hold a slot while they are under way. `Turns` is the target's: it
cannot hold sources on the line, so who is told "busy" asks again, and has its place meanwhile.
Neither is kept over a restart: who waited has changed nothing yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from sterna import clock

ASKS_S = 0.5  # how often one that waits asks the target
ASKING_S = 10.0  # one that has not asked for so long lets others pass: many times ASKS_S
KEPT_S = 3600.0  # it has its place still if it asks again: it waited for a slot of its own host


def waits(under_way: int, place: int, where: str) -> str:
    """What one that waits tells its user."""
    moves = "1 move is" if under_way == 1 else f"{under_way} moves are"
    return f"waits: {moves} under way {where}, place {place}"


class Turn:
    """One slot that somebody has."""

    def __init__(self, slots: Slots, *, was_late: bool) -> None:
        self.was_late = was_late  # it had to wait
        self._slots = slots
        self._has_it = False
        self.take()

    def take(self) -> None:
        """It is held from now on."""
        self._has_it = True
        self._slots.count(1)

    def give_back(self) -> None:
        """Others may have it. May be repeated."""
        if self._has_it:
            self._has_it = False
            self._slots.count(-1)

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """Others may have the slot during the block; the next that is free after it is ours."""
        self.give_back()
        yield  # who is cancelled here, or in the next line, has none to give back
        await self._slots.again()
        self.take()


class Slots:
    """Turns of one host's own moves of one kind."""

    def __init__(self, limit: Callable[[], int], where: str) -> None:
        self._limit = limit  # of now: it may change at any time
        self._where = where
        self.held = 0
        self._queue: list[asyncio.Event] = []

    @contextlib.asynccontextmanager
    async def turn(self, say: Callable[[str], None]) -> AsyncIterator[Turn]:
        """A slot until the block ends. `say` is told how it waits."""
        turn = Turn(self, was_late=await self._wait(len(self._queue), say))
        try:
            yield turn
        finally:
            turn.give_back()

    async def again(self) -> None:
        """Until there is a slot for one that had its turn already, and so is before all others."""
        await self._wait(0, lambda _: None)

    def count(self, change: int) -> None:
        """So many more are held."""
        self.held += change
        self.look()  # the next may have its turn; or a limit was raised that lets it in, too

    async def _wait(self, index: int, say: Callable[[str], None]) -> bool:
        has_waited, place = False, asyncio.Event()
        self._queue.insert(index, place)
        try:
            while self._queue[0] is not place or self.held >= self._limit():
                has_waited = True
                say(waits(self.held, self._queue.index(place) + 1, self._where))
                place.clear()
                await place.wait()
        finally:
            self._queue.remove(place)
            self.look()  # those behind have moved up
        return has_waited

    def look(self) -> None:
        """Something has changed: each that waits looks again whether it is its turn."""
        for place in self._queue:
            place.set()


class Turns:
    """Places of sources that this host has told to ask again."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}  # operation -> when it asked last, in order of arrival

    def place(self, operation: str, free: int) -> int:
        """0: it is its turn, and it waits no more. Else its place, from 1 on."""
        now = clock.monotonic()
        for one, when in list(self._asked.items()):
            if now - when > KEPT_S:
                del self._asked[one]
        self._asked[operation] = now  # who asks again is where it was
        asking = [one for one, when in self._asked.items() if now - when <= ASKING_S]
        index = asking.index(operation)
        if index < free:
            del self._asked[operation]
            return 0
        return index + 1 - max(0, free)
