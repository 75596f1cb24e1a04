"""A host emptied for maintenance (drained), and filled again (resumed).

Promises: from the moment that a drain has begun, over restarts too, the host takes and starts no VM
until it is resumed. Which VMs have left is written down before each of their moves begins, so that
`resume` brings back all of them and no other. A drain that ended early goes on when it is given
again. What has moved on from where it was sent, or is gone, is left alone, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sterna import clock
from sterna.errors import DrainUnderWay, SeveralCancelled, SternaError, VMNotFound
from sterna.fleet.back import Back
from sterna.fleet.convoy import Convoy, Local, concluded
from sterna.fleet.hosts import Fleet
from sterna.fleet.several import settle
from sterna.fleet.survey import Survey
from sterna.host.settings import Settings
from sterna.host.store import Damaged, Store
from sterna.model.check import Outcome, outcome
from sterna.model.move import MoveWishes
from sterna.model.operation import Operation
from sterna.model.several import (
    ANY,
    Away,
    DrainWishes,
    Part,
    PartState,
    Planned,
    ResumeWishes,
    SeveralPlan,
)
from sterna.model.vm import RunState
from sterna.move.engine import Moves
from sterna.move.peer import Peers
from sterna.operations.runner import Job, Work
from sterna.vms.machine import VM
from sterna.vms.service import VMs

KINDS = ("drain", "resume")
AGAIN = "sterna host drain"
NONE = MoveWishes(target=ANY)
AGAIN_ELSEWHERE = (PartState.FAILED, PartState.REFUSED)  # at a target; without one it cannot go
CANCELLED = f"The host is draining still. Go on: {AGAIN}; or let it take VMs: sterna host resume"


class Leaving(Local):
    """Moves of a drain: each VM is written down before it goes."""

    def __init__(self, drains: Drains, job: Job, wishes: MoveWishes) -> None:
        super().__init__(drains.moves, drains.vms, job.id, wishes)
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
        self._survey = Survey(self.name, moves, peers, fleet)
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
            "drain": settle(runner, lambda job: Leaving(self, job, NONE), AGAIN),
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

    async def _strike_here(self) -> None:
        """None of those that are here is away."""
        for vm in self._here():
            with contextlib.suppress(SternaError):  # then `resume` finds that it is here
                await self.strike(vm.id)

    # ---- drain -----------------------------------------------------------------------------

    async def plan(self, wishes: DrainWishes) -> SeveralPlan:
        """Where each VM would go. Raises HostUnknown."""
        found = await self._survey.places(self._here(), wishes)
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
            tried: dict[str, set[str]] = {}
            driver = Leaving(self, job, wishes.wishes)
            while new := self._next(done, tried):
                job.phase = "plan"
                found, notes = await self._survey.places(new, wishes, tried)
                for text in notes:
                    job.warn(text)
                job.phase = "move"
                parts = _joined(done, map(self._part, found), job)
                try:
                    done = await Convoy(job, driver, parts).run()
                except SeveralCancelled as error:
                    raise SeveralCancelled(**{**error.facts, "fix": CANCELLED}) from error
                finally:
                    if job.stopped_by != "shutdown":
                        await self._strike_here()
            return concluded(done, job.id)

        return await self._start("drain", work)

    def _next(self, done: Sequence[Part], tried: dict[str, set[str]]) -> list[VM]:
        """Who is here and has not been looked at, or might go to another host than it has `tried`."""
        ended = {one.vm_id: one for one in done}
        found = []
        for vm in self._here():
            part = ended.get(vm.id)
            if part is None:
                found.append(vm)
            elif part.state in AGAIN_ELSEWHERE and part.target:
                before = tried.setdefault(vm.id, set())
                if part.target not in before:
                    before.add(part.target)
                    found.append(vm)
        return found

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
        await self._strike_here()
        for part in parts:
            if part.state is PartState.SKIPPED:
                with contextlib.suppress(SternaError):
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


def _joined(done: Sequence[Part], new: Iterable[Part], job: Job) -> tuple[Part, ...]:
    """With the next try of those that failed, each in its place; one that has none stays failed."""
    parts = {one.vm_id: one for one in done}
    for part in new:
        failed = parts.get(part.vm_id)
        if failed is not None and not part.target:
            job.warn(f"{part.vm}: {failed.target} did not do, nor does another: {part.reason}")
            continue
        if failed is not None:
            job.log(f"{part.vm}: {failed.target} did not do; it is sent to {part.target}")
        parts[part.vm_id] = part
    return tuple(parts.values())
