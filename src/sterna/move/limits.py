"""What moves may take of this host's network: one limit for all, shared fairly, and the users' own.

The shares are computed anew whenever a move begins or ends, or a wish changes. A move whose user
wants less than its share leaves the rest to the others. Bytes/s on the wire; None is no limit.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sterna.errors import SternaError

log = logging.getLogger(__name__)

LEAST = 64 << 10  # of a share: less would look like a link that is down


def shares(total: int | None, wishes: Sequence[int | None]) -> list[int | None]:
    """What each may take, by its wish: max-min fair."""
    if total is None:
        return list(wishes)
    found: list[int | None] = [None] * len(wishes)
    left, waiting = total, sorted(range(len(wishes)), key=lambda i: wishes[i] or total)
    while waiting:
        first = waiting.pop(0)
        share = min(wishes[first] or total, left // (len(waiting) + 1))
        found[first] = max(LEAST, share)
        left -= share
    return found


class Member:
    """One move's part of the limit."""

    def __init__(
        self, limits: Limits, wish: int | None, apply: Callable[[int | None], Awaitable[None]]
    ) -> None:
        self.share: int | None = None  # as far as it has been told
        self.wish = wish
        self.apply = apply
        self._limits = limits

    async def ask(self, wish: int | None) -> None:
        """The user has changed the wish. Raises what `apply` raises."""
        self.wish = wish
        await self._limits.divide(asking=self)


class Limits:
    """The limit of one host, for all moves away from it."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._members: list[Member] = []

    @contextlib.asynccontextmanager
    async def member(
        self, wish: int | None, apply: Callable[[int | None], Awaitable[None]]
    ) -> AsyncIterator[Member]:
        """Take part until the block ends. `apply` is called when the share has changed."""
        member = Member(self, wish, apply)
        self._members.append(member)
        try:
            await self.divide()
            yield member
        finally:
            self._members.remove(member)
            await self.divide()

    async def change(self, total: int | None) -> None:
        """Another limit for all, from now on."""
        self._total = total
        await self.divide()

    async def divide(self, asking: Member | None = None) -> None:
        """Compute all shares; who has another one than before is told."""
        found = shares(self._total, [member.wish for member in self._members])
        for member, share in list(zip(self._members, found, strict=True)):
            if share == member.share:
                continue
            member.share = share
            try:
                await member.apply(share)
            except SternaError as error:
                if member is asking:
                    raise
                log.warning("the limit of a move was not changed: %s", error)
