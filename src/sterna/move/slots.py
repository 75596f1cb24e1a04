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
FORGOTTEN_S = 10.0  # one that has not asked for so long does not wait any more: many times ASKS_S


def waits(under_way: int, place: int, where: str) -> str:
    """What one that waits tells its user."""
    moves = "1 move is" if under_way == 1 else f"{under_way} moves are"
    return f"waits: {moves} under way {where}, place {place}"


class Slots:
    """Turns of one host's own moves of one kind."""

    def __init__(self, limit: Callable[[], int], where: str) -> None:
        self._limit = limit  # of now: it may change at any time
        self._where = where
        self._held = 0
        self._queue: list[asyncio.Event] = []

    @contextlib.asynccontextmanager
    async def turn(self, say: Callable[[str], None]) -> AsyncIterator[bool]:
        """A slot until the block ends; yields whether it had to wait. `say` is told how it waits."""
        place = asyncio.Event()
        has_waited = await self._wait(place, say)
        self._held += 1
        try:
            self.look()  # a limit that was raised may let the next in, too
            yield has_waited
        finally:
            self._held -= 1
            self.look()

    async def _wait(self, place: asyncio.Event, say: Callable[[str], None]) -> bool:
        has_waited = False
        self._queue.append(place)
        try:
            while self._queue[0] is not place or self._held >= self._limit():
                has_waited = True
                say(waits(self._held, self._queue.index(place) + 1, self._where))
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
            if now - when > FORGOTTEN_S:
                del self._asked[one]
        self._asked[operation] = now
        index = list(self._asked).index(operation)
        if index < free:
            del self._asked[operation]
            return 0
        return index + 1 - max(0, free)
