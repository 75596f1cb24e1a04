"""VMs that other hosts have, brought here: each by a move of the host where it is.

The host where a VM is drives its move, so that it goes on whatever becomes of who asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib

from sterna import clock
from sterna.errors import Conflict, HostUnreachable, NotFound, SternaError
from sterna.fleet.convoy import Tell
from sterna.model.move import Adjustment, MoveWishes
from sterna.model.operation import Operation
from sterna.model.several import Part
from sterna.move.peer import Peers
from sterna.tasks import finish
from sterna.vms.service import VMs

WAIT_S = 20.0  # a question that is answered at the end of a move, or then
SILENT_S = 60.0  # a daemon restarts within seconds; longer is an outage, and the move goes on alone
RETRY_S = 0.5


class Back:
    """Drives moves of VMs from other hosts to this one."""

    def __init__(self, vms: VMs, peers: Peers) -> None:
        self._vms = vms
        self._peers = peers
        self._wishes = MoveWishes(target=vms.config.name)

    async def begin(self, part: Part) -> str:
        """Ask its host to move it here."""
        peer, begun = self._peers.get(part.source), list[Operation]()

        async def ask() -> None:
            begun.append(await peer.move(part.vm_id, self._wishes))

        try:
            await finish(ask())
        except asyncio.CancelledError:
            for one in begun:
                with contextlib.suppress(SternaError):
                    await finish(peer.cancel(one.id))
            raise
        return begun[0].id

    async def follow(self, part: Part, tell: Tell) -> Operation:
        """Its end. Raises HostUnreachable when its host has been silent for SILENT_S."""
        peer = self._peers.get(part.source)
        heard = clock.monotonic()
        while True:
            try:
                now = await peer.operation(part.operation, WAIT_S)
            except HostUnreachable:
                if clock.monotonic() - heard > SILENT_S:
                    raise
                await asyncio.sleep(RETRY_S)
                continue
            heard = clock.monotonic()
            if now.state.is_final:
                return now
            tell(now)

    async def cancel(self, part: Part) -> None:
        """Unless it has ended, or is about to."""
        with contextlib.suppress(Conflict, NotFound):
            await self._peers.get(part.source).cancel(part.operation)

    async def adjust(self, part: Part, wished: Adjustment) -> None:
        """Unless it has ended, or is in a phase that cannot change."""
        with contextlib.suppress(Conflict, NotFound):
            await self._peers.get(part.source).adjust(part.operation, wished)

    def prefer(self, wished: Adjustment) -> None:
        """Of all moves that begin from now on."""
        self._wishes = wished.of(self._wishes)

    async def has_left(self, part: Part) -> bool:
        """By the record here."""
        vm = self._vms.by_id(part.vm_id)
        return vm is not None and vm.is_here
