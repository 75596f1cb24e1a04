"""A host emptied for maintenance (drained), and filled again (resumed).

Promises: from the moment that a drain has begun, over restarts too, the host takes and starts no VM
until it is resumed. Which VMs have left is written down before each of their moves begins, so that
`resume` brings back all of them and no other. A drain that ended early goes on when it is given
again. What has moved on from where it was sent, or is gone, is left alone, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sterna import clock
from sterna.errors import DrainUnderWay, SternaError, VMNotFound
from sterna.host.settings import Settings
from sterna.host.store import Damaged, Store
from sterna.model.check import Check, MoveReport, Outcome, outcome
from sterna.model.host import HostFacts
from sterna.model.move import MoveWishes
from sterna.model.operation import Operation
from sterna.model.several import (
    Away,
    DrainWishes,
    Part,
    PartState,
    Planned,
    ResumeWishes,
    SeveralPlan,
)
from sterna.model.vm import RunState
from sterna.move.back import Back
from sterna.move.convoy import Convoy, Local, concluded
from sterna.move.engine import Moves
from sterna.move.fleet import Fleet
from sterna.move.peer import Peers
from sterna.move.placement import Guest, Placement, Room, in_order, place
from sterna.move.several import AT_ONCE, planned, settle
from sterna.operations.runner import Job, Work
from sterna.vms.machine import VM
from sterna.vms.service import VMs

KINDS = ("drain", "resume")
AGAIN = "sterna host drain"


class Leaving(Local):
    """Moves of a drain: each VM is written down before it goes."""

    def __init__(self, drains: Drains, job: Job) -> None:
        super().__init__(drains.moves, drains.vms, job.id, MoveWishes(target=""))
        self._drains = drains

    async def begin(self, part: Part) -> str:
        await self._drains.note(part)
        try:
            return await super().begin(part)
        except SternaError:
            await self._drains.strike(part.vm_id)
            raise


class Drains:
    """Of this host."""

    def __init__(
        self, vms: VMs, moves: Moves, peers: Peers, fleet: Fleet, settings: Settings
    ) -> None:
        self.vms = vms
        self.moves = moves
        self._peers = peers
        self._fleet = fleet
        self._settings = settings
        self._store = Store(vms.config.state_dir / "drain", Away)
        self.away: dict[str, Away] = {}  # by the VM's id
        self.damaged: list[Damaged] = []
        self._turn = asyncio.Lock()  # one drain or resume at a time

    @property
    def name(self) -> str:
        """Of this host."""
        return self.vms.config.name

    def load(self) -> None:
        """Read who has left."""
        self.away, self.damaged = self._store.load()

    def settlers(self) -> dict[str, Callable[[Operation], Any]]:
        """What ends such an operation of a former life of the daemon."""
        runner = self.vms.runner
        return {
            "drain": settle(runner, lambda job: Leaving(self, job), AGAIN),
            "resume": settle(runner, lambda _: Back(self.vms, self._peers), "sterna host resume"),
        }

    # ---- the list --------------------------------------------------------------------------

    async def note(self, part: Part) -> None:
        """It is about to leave. Raises StateNotWritten."""
        one = Away(vm=part.vm, vm_id=part.vm_id, target=part.target, since=clock.now())
        await self._store.write(part.vm_id, one)
        self.away[part.vm_id] = one

    async def strike(self, vm_id: str) -> None:
        """It is none of those that have left, or is not wanted back. Raises StateNotWritten."""
        if vm_id in self.away:
            await self._store.delete(vm_id)
            del self.away[vm_id]

    # ---- drain -----------------------------------------------------------------------------

    async def plan(self, wishes: DrainWishes) -> SeveralPlan:
        """Where each VM would go. Raises HostUnknown."""
        found = await self._placed(self._here(), wishes)
        notes = [f"the VM {one.key} is damaged and cannot move" for one in self.vms.damaged]
        return SeveralPlan(
            source=self.name, made=clock.now(), vms=tuple(found[0]), notes=(*found[1], *notes)
        )

    async def begin(self, wishes: DrainWishes) -> Operation:
        """From now on it is draining. Raises HostUnknown, DrainUnderWay, StateNotWritten."""
        for name in wishes.to:
            self._peers.get(name)

        async def work(job: Job) -> dict[str, Any]:
            done: tuple[Part, ...] = ()
            while new := [vm for vm in self._here() if vm.id not in {one.vm_id for one in done}]:
                job.phase = "plan"
                found, notes = await self._placed(new, wishes)
                for text in notes:
                    job.warn(text)
                job.phase = "move"
                done = await Convoy(job, Leaving(self, job), (*done, *map(self._part, found))).run()
            for part in done:
                if (vm := self.vms.by_id(part.vm_id)) is not None and vm.is_here:
                    await self.strike(part.vm_id)
            return concluded(done, job.id)

        return await self._start("drain", work)

    async def _start(self, kind: str, work: Work) -> Operation:
        async with self._turn:
            self._require_none()
            await self._settings.drain(is_draining=kind == "drain")
            return self.vms.runner.start(kind, vm="", work=work)

    def _require_none(self) -> None:
        for one in self.vms.runner.active():
            if one.kind in KINDS:
                raise DrainUnderWay(kind=f"a {one.kind}", host=self.name, operation=one.id)

    def _here(self) -> list[VM]:
        return [vm for vm in self.vms.all() if vm.is_here]

    def _part(self, one: Planned) -> Part:
        part = Part(vm=one.vm, vm_id=one.vm_id, source=self.name, target=one.target)
        if one.target:
            return part
        state = PartState.REFUSED if one.outcome is Outcome.BLOCKED else PartState.SKIPPED
        return replace(part, state=state, reason=one.reason, fix=one.fix)

    async def _placed(
        self, vms: Sequence[VM], wishes: DrainWishes
    ) -> tuple[list[Planned], list[str]]:
        """Each with its place, in the order in which they go; and what is worth to know."""
        targets = wishes.to or tuple(self._peers.names)
        staying = [vm for vm in vms if wishes.keep_off and vm.state is RunState.OFF]
        going = {vm.id: vm for vm in vms if vm not in staying}
        facts = await self._fleet.facts(targets) if targets else {}
        looked = await self._survey(list(going.values()), targets)
        rooms = [_room(name, one) for name, one in facts.items() if isinstance(one, HostFacts)]
        guests = [_guest(vm, looked[vm.id]) for vm in going.values()]
        placement = place(guests, rooms)
        found = [
            _planned(going[one.id], placement, looked[one.id], self.name)
            for one in in_order(guests)
        ]
        found += [
            replace(planned(vm, reason="it is off, and stays"), outcome=Outcome.WELL)
            for vm in staying
        ]
        split = [
            f"the VMs of the affinity group {group} do not all get one host"
            for group in placement.split
        ]
        return found, split

    async def _survey(
        self, vms: Sequence[VM], targets: Sequence[str]
    ) -> dict[str, dict[str, MoveReport]]:
        """What each would meet on each host: by id, by host."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(vm: VM) -> dict[str, MoveReport]:
            async with turn:
                reports = await self.moves.survey(vm.id, MoveWishes(target=""), targets)
                return {report.target: report for report in reports}

        if not targets:
            return {vm.id: {} for vm in vms}
        found = await asyncio.gather(*(one(vm) for vm in vms))
        return {vm.id: reports for vm, reports in zip(vms, found, strict=True)}

    # ---- resume ----------------------------------------------------------------------------

    async def plan_resume(self, wishes: ResumeWishes) -> SeveralPlan:
        """Which VMs would come back, from where."""
        found = await self._returning(wishes)
        return SeveralPlan(source=self.name, made=clock.now(), vms=tuple(found))

    async def _returning(self, wishes: ResumeWishes) -> list[Planned]:
        """All that have left, in the order in which they come back."""
        if wishes.fail_back:
            found = await asyncio.gather(*(self._return(one) for one in self.away.values()))
        else:
            found = [
                replace(self._known(one), reason=f"it stays on {one.target}")
                for one in self.away.values()
            ]
        return sorted(found, key=lambda one: (-one.priority, -one.memory, one.vm))

    async def resume(self, wishes: ResumeWishes) -> Operation:
        """The host takes and starts VMs again, and what has left comes back.

        Raises DrainUnderWay, StateNotWritten.
        """

        async def work(job: Job) -> dict[str, Any]:
            job.phase = "plan"
            found = await self._returning(wishes)
            parts = [replace(self._part(one), source=self.away[one.vm_id].target) for one in found]
            job.phase = "move"
            try:
                parts = list(await Convoy(job, Back(self.vms, self._peers), parts).run())
            finally:
                if job.stopped_by != "shutdown":
                    await self._strike_returned(parts)
            return concluded(parts, job.id)

        return await self._start("resume", work)

    async def _strike_returned(self, parts: Sequence[Part]) -> None:
        for part in parts:
            vm = self.vms.by_id(part.vm_id)
            if part.state is PartState.SKIPPED or (vm is not None and vm.is_here):
                with contextlib.suppress(SternaError):  # then it is found here the next time
                    await self.strike(part.vm_id)

    def _known(self, one: Away) -> Planned:
        """What this host knows of a VM that has left."""
        vm = self.vms.by_id(one.vm_id)
        return Planned(
            vm=one.vm,
            vm_id=one.vm_id,
            state=RunState.UNKNOWN,
            memory=0,
            priority=0 if vm is None else vm.record.spec.placement.priority,
        )

    async def _return(self, one: Away) -> Planned:
        """Whether it can come back, as its host says."""
        vm, plan = self.vms.by_id(one.vm_id), self._known(one)
        if vm is not None and vm.is_here:
            return replace(plan, state=vm.state, reason=f"it is on {self.name} already")
        wishes = MoveWishes(target=self.name)
        try:
            peer = self._peers.get(one.target)
            state = await peer.vm_state(one.vm_id)
            report = await peer.check_move(one.vm_id, wishes)
        except VMNotFound:
            gone = f"{one.target} has it no more: it has moved on, or was deleted"
            return replace(plan, reason=gone)
        except SternaError as error:
            return replace(plan, outcome=Outcome.BLOCKED, reason=error.message, fix=error.advice)
        memory = 0 if state is RunState.OFF or vm is None else vm.record.spec.memory
        findings = tuple(each for each in report.findings if each.id != "host.draining")
        first = next(iter(findings), None)
        return replace(
            plan,
            state=state,
            memory=memory,
            target=self.name,
            outcome=outcome(findings),
            findings=findings,
            reason=first.finding if first else "",
            fix=first.fix if first else "",
        )


def _room(name: str, facts: HostFacts) -> Room:
    return Room(
        name=name,
        memory=facts.memory_free,
        pools={one.pool.name: one.free for one in facts.pools if not one.problem},
        affinity=frozenset(facts.groups.affinity),
        anti_affinity=frozenset(facts.groups.anti_affinity),
    )


def _guest(vm: VM, reports: dict[str, MoveReport]) -> Guest:
    spec = vm.record.spec
    rules = spec.placement
    fits: dict[str, dict[str, int]] = {}
    for target, report in reports.items():
        if report.outcome is Outcome.BLOCKED:
            continue
        sizes = fits.setdefault(target, {})
        for each in report.places:
            if each.travels:
                sizes[each.to] = sizes.get(each.to, 0) + each.size
    return Guest(
        id=vm.id,
        name=vm.name,
        memory=0 if vm.state is RunState.OFF else spec.memory,
        priority=rules.priority,
        affinity=rules.affinity,
        anti_affinity=rules.anti_affinity,
        fits=fits,
        warned=frozenset(
            target for target, report in reports.items() if report.outcome is Outcome.WARNED
        ),
    )


def _planned(vm: VM, placement: Placement, reports: dict[str, MoveReport], host: str) -> Planned:
    """Its place; or why it has none, host by host."""
    if (target := placement.hosts.get(vm.id)) is not None:
        return planned(vm, reports[target])
    if not reports:
        reason = f"{host} knows no other host"
        return planned(vm, reason=reason, fix="Add one to [peers] of sternad's configuration")
    first = {target: _blocker(report) for target, report in reports.items()}
    lacks = placement.why.get(vm.id, {})
    reasons = {
        target: found.finding if found else lacks.get(target, "it does not answer")
        for target, found in first.items()
    }
    told = dict.fromkeys(reasons.values())
    text = "; ".join(
        told if len(told) == 1 else (f"{name}: {reason}" for name, reason in reasons.items())
    )
    fixes = [found.fix for found in first.values() if found and found.fix]
    return planned(vm, reason=text, fix=fixes[0] if fixes else "Make room there, or stop it")


def _blocker(report: MoveReport) -> Check | None:
    found = outcome(report.findings) is Outcome.BLOCKED
    return report.findings[0] if found else None
