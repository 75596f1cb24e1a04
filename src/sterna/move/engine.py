"""Moves away from this host: planned, and begun as operations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from sterna.model.host import HostFacts
from sterna.model.move import MoveWishes
from sterna.model.operation import Operation
from sterna.move import (
    carriers,
    checks,
    offer,
    probe,
    sample,
    seed,
)
from sterna.move.carriers import Choice
from sterna.move.journey import Move
from sterna.move.limits import Limits
from sterna.move.peer import Peer, Peers
from sterna.move.storage.facts import users
from sterna.move.travel import Travel, measure, plan, shared_pools
from sterna.operations.runner import Job
from sterna.units import GIB
from sterna.vms.machine import VM
from sterna.vms.service import VMs

TCG_SYNC_S_PER_GIB = 0.5


class Moves:
    """All moves away from this host."""

    def __init__(
        self, vms: VMs, peers: Peers, gather: Callable[[], Awaitable[HostFacts]], seeds: seed.Seeds
    ) -> None:
        self._vms = vms
        self._peers = peers
        self._gather = gather
        self._seeds = seeds
        self._limits = Limits(vms.config.migration.limit)

    async def begin(self, ref: str, wishes: MoveWishes) -> Operation:
        """Plan the move of a VM and start it as an operation.

        Raises, with nothing changed: VMNotFound, VMBusy, HostUnknown, HostUnreachable, MoveRefused.
        """
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with vm.lease(f"a move to {wishes.target} is being planned"):
            peer, travel, choice, warnings = await self._plan(vm, wishes)
            is_sown, why = await self._choose(vm, travel, wishes)

        async def go(job: Job) -> dict[str, Any]:
            for warning in warnings:
                job.warn(warning)
            go_with: dict[str, Any] = {
                "job": job, "vms": self._vms, "limits": self._limits, "choice": choice,
            }  # fmt: skip
            if not is_sown:
                return await Move(vm, peer, wishes, travel, **go_with).run()
            job.log(f"its disks are frozen and sent as files: {why}")
            await self._seeds.sow(vm, job)
            _, sown, _, _ = await self._plan(vm, wishes)
            sown = replace(sown, is_sown=True)
            return await Move(vm, peer, wishes, sown, **go_with).run()

        async def work(job: Job) -> dict[str, Any]:
            try:
                with vm.lease(f"moving to {wishes.target}", job.id):
                    return await go(job)
            finally:
                self._seeds.make_whole(vm)  # if it is here still

        return self._vms.runner.start(
            "move", vm=vm.name, vm_id=vm.id, work=work, peer=wishes.target
        )

    @staticmethod
    async def _nothing() -> None:
        return None

    async def _choose(self, vm: VM, travel: Travel, wishes: MoveWishes) -> tuple[bool, str]:
        if not travel.mirrors and wishes.disk_copy != "seed":
            return False, ""
        bitmaps = await offer.bitmaps(vm, travel)
        free = {facts.pool.name: facts.free for facts in await self._vms.launcher.pools.facts()}
        return seed.choose(travel, wishes, bitmaps, free, is_live=vm.process is not None)

    async def _plan(
        self, vm: VM, wishes: MoveWishes
    ) -> tuple[Peer, Travel, Choice | None, list[str]]:
        is_here = wishes.target == self._vms.config.name
        peer = None if is_here else self._peers.get(wishes.target)
        asking = asyncio.gather(  # at once: each takes a moment
            self._gather(),
            self._nothing() if peer is None else peer.facts(),
            self._nothing() if vm.process is None else vm.qmp.query_migrate(),
            self._nothing() if peer is None or vm.process is None else probe.measure(peer),
        )
        if vm.process is None:
            source, target, info, link = await asking
            memory = None
        else:
            (source, target, info, link), memory = await sample.during(vm.process.pid, asking)
        target = target or source
        process = vm.record.process
        travel = plan(
            vm.record,
            wishes,
            shared=shared_pools(source, target),
            is_live=process is not None,
        )
        pools = self._vms.launcher.pools
        travel = await measure(travel, vm.record, pools, self._vms.config.name)
        found = checks.require(
            checks.Question(
                spec=vm.record.spec,
                travel=travel,
                state=vm.state,
                accel=process.accel if process else "",
                blocked=tuple(info.blocked_reasons) if info else (),
                source=source,
                target=target,
                wishes=wishes,
                users=users(vm, self._vms, travel.leaving),
            )
        )
        if peer is None:  # `same_host` refuses; this is for the type checker and for ever
            raise AssertionError
        # What only the target can see: names and files that are there, the state of its VMs.
        question = offer.reservation(vm, self._vms, travel)
        found += checks.refuse_blockers(question.spec.name, peer.name, await peer.check(question))
        measured = carriers.Measured(
            link=link,
            memory=memory or sample.Memory(used=vm.record.spec.memory),
            disks=sum(mirror.offer.allocated for mirror in travel.mirrors),
            idle_here=source.cpus_idle,
            idle_there=target.cpus_idle,
            limit=wishes.bandwidth,
            max_pause_s=wishes.max_downtime_ms / 1000,
            sync_s=_sync_s(vm),
        )
        # A broken post-copy is mended from QEMU to QEMU.
        wished = "direct" if wishes.on_stall == "postcopy" else wishes.carrier
        choice = carriers.choose(wished, measured) if vm.process is not None else None
        return peer, travel, choice, [finding.finding for finding in found]


def _sync_s(vm: VM) -> float:
    """Under emulation the guest stands still while QEMU looks what it has changed (ADR 8)."""
    process = vm.record.process
    is_emulated = process is not None and process.accel == "tcg"
    return TCG_SYNC_S_PER_GIB * vm.record.spec.memory / GIB if is_emulated else 0.0
