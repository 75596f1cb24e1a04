"""Several VMs to one host, as one operation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sterna import clock
from sterna.errors import SternaError
from sterna.fleet.convoy import Convoy, Driver, Local, concluded
from sterna.model import edge
from sterna.model.check import MoveReport, Outcome, outcome
from sterna.model.move import MoveWishes
from sterna.model.operation import Operation
from sterna.model.several import Part, PartState, Planned, SeveralPlan, SeveralWishes
from sterna.model.vm import RunState
from sterna.move.engine import Moves
from sterna.operations.runner import Job, Runner
from sterna.vms.machine import VM
from sterna.vms.service import VMs

AT_ONCE = 4  # VMs that are looked at together: each look asks all targets at once
INTERRUPTED = "sternad ended before its turn"


class Several:
    """Moves of several VMs away from this host."""

    def __init__(self, vms: VMs, moves: Moves) -> None:
        self._vms = vms
        self._moves = moves

    async def plan(self, wishes: SeveralWishes) -> SeveralPlan:
        """What would become of each, as if it went alone. Raises VMNotFound, VMDamaged."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(vm: VM) -> Planned:
            async with turn:
                return planned(vm, await self._moves.check(vm.id, wishes.wishes))

        found = await asyncio.gather(*(one(vm) for vm in self._chosen(wishes)))
        return SeveralPlan(source=self._vms.config.name, made=clock.now(), vms=tuple(found))

    async def begin(self, wishes: SeveralWishes) -> Operation:
        """Start it. Raises VMNotFound, VMDamaged: then nothing has happened."""
        target = wishes.wishes.target
        parts = [
            Part(vm=vm.name, vm_id=vm.id, source=self._vms.config.name, target=target)
            for vm in self._chosen(wishes)
        ]

        async def work(job: Job) -> dict[str, Any]:
            driver = Local(self._moves, self._vms, job.id, wishes.wishes)
            return concluded(await Convoy(job, driver, parts).run(), job.id)

        return self._vms.runner.start("moves", vm="", work=work, peer=target)

    def settlers(self) -> dict[str, Callable[[Operation], Any]]:
        """What ends such an operation of a former life of the daemon."""
        return {"moves": settle(self._vms.runner, self._driver, "sterna move")}

    def _driver(self, job: Job) -> Driver:
        wishes = MoveWishes(target=job.operation.peer)
        return Local(self._moves, self._vms, job.id, wishes)

    def _chosen(self, wishes: SeveralWishes) -> list[VM]:
        """Each once, whether it was named by name or id."""
        found = {vm.id: vm for vm in (self._vms.get(ref) for ref in wishes.vms)}
        return list(found.values())


def planned(vm: VM, report: MoveReport | None = None, reason: str = "", fix: str = "") -> Planned:
    """A VM and the move that is meant for it, if there is one."""
    spec, is_off = vm.record.spec, vm.state is RunState.OFF
    one = Planned(
        vm=vm.name,
        vm_id=vm.id,
        state=vm.state,
        memory=0 if is_off else spec.memory,
        priority=spec.placement.priority,
        reason=reason,
        fix=fix,
    )
    if report is None:
        return replace(one, outcome=Outcome.BLOCKED)
    first = next(iter(report.findings), None)
    return replace(
        one,
        target=report.target,
        outcome=outcome(report.findings),
        findings=report.findings,
        reason=reason or (first.finding if first else ""),
        fix=fix or (first.fix if first else ""),
    )


def settle(
    runner: Runner, driver_of: Callable[[Job], Driver], again: str
) -> Callable[[Operation], Callable[[Job], Any]]:
    """The work that ends an operation of a former life: its parts are, or come to, an end.

    `again`: how to go on with it, for those whose turn had not come.
    """

    def settler(operation: Operation) -> Callable[[Job], Any]:
        async def work(job: Job) -> dict[str, Any]:
            job.log("sternad restarted; what had begun is brought to its end, nothing new begins")
            parts = _known(operation, {one.vm_id: one for one in await runner.parts(operation.id)})
            fix = f"Go on with: {again}"
            stopped = [
                one
                if one.operation or one.state.is_final
                else replace(one, state=PartState.CANCELLED, reason=INTERRUPTED, fix=fix)
                for one in parts
            ]
            return concluded(await Convoy(job, driver_of(job), stopped).run(), job.id)

        return work

    return settler


def _known(operation: Operation, begun: dict[str, Operation]) -> list[Part]:
    """Its parts as it last told them, and each move that it had not told yet."""
    try:
        told = edge.parse(tuple[Part, ...], operation.result.get("vms", ()), "parts")
    except SternaError:
        told = ()
    return [
        replace(one, operation=begun[one.vm_id].id)
        if not one.operation and one.vm_id in begun
        else one
        for one in told
    ]
