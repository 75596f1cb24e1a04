"""Does the target still hold the reservation? Asked all along while memory travels.

Each question also renews the reservation on the target. Without an answer for `SILENCE_S` the
move is undone: the guest must not be stopped for a target that cannot take it over.
"""

from __future__ import annotations

import asyncio

from sterna import clock
from sterna.errors import HostUnreachable, TargetLost
from sterna.model.vm import OwnershipState
from sterna.move.peer import Peer

RENEW_S = 0.5
SILENCE_S = 15.0  # longer than a cable is out, and than a daemon takes to restart
FRESH_S = 2.0  # the newest answer may be this old when the guest is about to be handed over


class Watch:
    """Keeps asking `peer` about one operation, in a task of its own."""

    def __init__(self, peer: Peer, operation: str) -> None:
        self._peer = peer
        self._operation = operation
        self._answered = clock.monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether the target answered a moment ago."""
        return clock.monotonic() - self._answered < FRESH_S

    async def run(self) -> None:
        """Until cancelled. Raises TargetLost when the target refuses, or is silent too long."""
        while True:
            try:
                await self.ask()
            except HostUnreachable as error:
                if clock.monotonic() - self._answered > SILENCE_S:
                    raise TargetLost(
                        target=self._peer.name,
                        reason=f"its daemon has not answered for {SILENCE_S:g} s ({error.message})",
                    ) from error
            await asyncio.sleep(RENEW_S)

    async def ask(self) -> None:
        """Ask once. Raises TargetLost if it has refused, HostUnreachable."""
        status = await self._peer.status(self._operation)
        self._answered = clock.monotonic()
        if status.state is not OwnershipState.RESERVED:
            raise TargetLost(target=self._peer.name, reason=status.reason or str(status.state))
