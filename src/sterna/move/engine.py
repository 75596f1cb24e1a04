"""Moves away from this host: planned, and begun as operations."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from sterna.host.settings import Settings
from sterna.model.check import MoveReport, Severity
from sterna.model.host import HostFacts
from sterna.model.move import Adjustment, MoveWishes
from sterna.model.operation import Operation
from sterna.model.settings import HostSettings
from sterna.model.travel import Travel
from sterna.move import offer, seed
from sterna.move.journey import Move
from sterna.move.limits import Limits
from sterna.move.paces import Paces
from sterna.move.peer import Peers
from sterna.move.preflight import Preflight
from sterna.move.queue import in_turn
from sterna.move.slots import Slots, Turn
from sterna.operations.runner import Job
from sterna.vms.inspection import Inspections
from sterna.vms.machine import VM
from sterna.vms.service import VMs


class Moves:
    """All moves away from this host."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that a move rests on
        self,
        vms: VMs,
        peers: Peers,
        own_facts: Callable[[], Awaitable[HostFacts]],
        seeds: seed.Seeds,
        inspections: Inspections,
        settings: Settings,
    ) -> None:
        self._vms = vms
        self.paces = Paces(vms.config.state_dir / "paces")
        self._preflight = Preflight(vms, peers, own_facts, inspections, self.paces)
        self._seeds = seeds
        self._limits = Limits(settings.now.bandwidth or None)
        self._live = Slots(lambda: settings.now.live_moves, f"on {vms.config.name}")
        self._off = Slots(lambda: settings.now.storage_moves, f"on {vms.config.name}")
        settings.follow(self._set)

    @property
    def storage_slots(self) -> Slots:
        """The turns of what only moves disks."""
        return self._off

    @property
    def under_way(self) -> dict[str, int]:
        """How many VMs are leaving or move their disks, by the names of `Moving`."""
        return {"away_live": self._live.held, "away_off": self._off.held}

    async def _set(self, settings: HostSettings) -> None:
        self._live.look()
        self._off.look()
        await self._limits.change(settings.bandwidth or None)

    async def check(self, ref: str, wishes: MoveWishes) -> MoveReport:
        """What would become of that move, and nothing else. Raises VMNotFound, VMDamaged."""
        return await self._preflight.report(self._vms.get(ref), wishes)

    async def survey(
        self, ref: str, wishes: MoveWishes, targets: Sequence[str]
    ) -> list[MoveReport]:
        """The same for each of these targets; none: all hosts that this one knows."""
        return await self._preflight.reports(self._vms.get(ref), wishes, targets)

    async def begin(self, ref: str, wishes: MoveWishes, parent: str = "") -> Operation:
        """Plan the move of a VM and start it as an operation, which may be a part of `parent`.

        Raises, with nothing changed: VMNotFound, VMBusy, HostUnknown, HostUnreachable, MoveRefused.
        """
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with vm.lease(f"a move to {wishes.target} is being planned"):
            peer, prepared = await self._preflight.require(vm, wishes)
            travel, choice = prepared.travel, prepared.choice
            is_sown, why = await self._choose(vm, travel, wishes)

        changes: list[Adjustment] = []  # that its user asked for before it began

        async def go(job: Job, turn: Turn) -> dict[str, Any]:
            nonlocal peer, prepared, travel, choice, is_sown, why
            if turn.was_late:  # what was planned may be true no more
                peer, prepared = await self._preflight.require(vm, wishes)
                travel, choice = prepared.travel, prepared.choice
                is_sown, why = await self._choose(vm, travel, wishes)
            for one in prepared.found:
                if one.severity is Severity.WARNING:
                    job.warn(one.finding)
            go_with: dict[str, Any] = {
                "job": job, "vms": self._vms, "limits": self._limits, "choice": choice,
                "addresses": prepared.addresses, "turn": turn,
            }  # fmt: skip
            if not is_sown:
                result = await Move(vm, peer, now(prepared.wishes), travel, **go_with).run()
                await self.paces.learn(wishes.target, choice, result)
                return result
            job.log(f"its disks are frozen and sent as files: {why}")
            await self._seeds.sow(vm, job)
            unbound = replace(wishes, approved=None)  # frozen, its disks are others than approved
            _, again = await self._preflight.require(vm, unbound)
            sown = replace(again.travel, is_sown=True)
            return await Move(vm, peer, now(prepared.wishes), sown, **go_with).run()

        def now(wishes: MoveWishes) -> MoveWishes:
            return functools.reduce(lambda wanted, change: change.of(wanted), changes, wishes)

        async def work(job: Job) -> dict[str, Any]:
            async def keep(change: Adjustment) -> None:
                changes.append(change)
                job.log(change.told)

            try:
                with vm.lease(f"moving to {wishes.target}", job.id), job.adjustable(keep):
                    slots = self._live if vm.process is not None else self._off
                    async with in_turn(slots, job, vm.name, wishes.target) as turn:
                        return await go(job, turn)
            finally:
                self._seeds.make_whole(vm)  # if it is here still

        return self._vms.runner.start(
            "move", vm=vm.name, vm_id=vm.id, work=work, peer=wishes.target, parent=parent
        )

    async def _choose(self, vm: VM, travel: Travel, wishes: MoveWishes) -> tuple[bool, str]:
        if not travel.mirrors and wishes.disk_copy != "seed":
            return False, ""
        bitmaps = await offer.bitmaps(vm, travel)
        free = {facts.pool.name: facts.free for facts in await self._vms.launcher.pools.facts()}
        return seed.choose(travel, wishes, bitmaps, free, is_live=vm.process is not None)
