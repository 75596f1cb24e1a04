"""Does the target still hold the reservation? Asked all along while memory travels.

Each question also renews the reservation on the target. Without an answer for the grace period the
move is undone: the guest must not be stopped for a target that cannot take it over.
"""

from __future__ import annotations

import asyncio

from sterna import clock
from sterna.errors import HostUnreachable, TargetLost
from sterna.model.vm import OwnershipState
from sterna.move.peer import Peer

RENEW_S = 0.5
FRESH_S = 2.0  # the newest answer may be this old when the guest is about to be handed over


class Watch:
    """Keeps asking `peer` about one operation, in a task of its own."""

    def __init__(self, peer: Peer, operation: str, silence_s: float) -> None:
        self._peer = peer
        self._operation = operation
        self._silence_s = (
            silence_s  # longer than a cable is out, and than a daemon takes to restart
        )
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
                if clock.monotonic() - self._answered > self._silence_s:
                    raise TargetLost(
                        target=self._peer.name,
                        reason=f"its daemon has not answered for {self._silence_s:g} s ({error.message})",
                    ) from error
            await asyncio.sleep(RENEW_S)

    async def ask(self) -> None:
        """Ask once. Raises TargetLost if it has refused, HostUnreachable."""
        status = await self._peer.status(self._operation)
        self._answered = clock.monotonic()
        if status.state is not OwnershipState.RESERVED:
            raise TargetLost(target=self._peer.name, reason=status.reason or str(status.state))
