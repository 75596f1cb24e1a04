"""Disks to another pool of the same host, under a running VM or of one that is off.

Promises: all disks of one such move change places together, by one write of the VM's record; until
then everything can be undone, and a cancel, a full target, a broken disk or a daemon that dies
leaves the VM as it was; from then on the former files are only removed (or kept). The guest never
stops; its writes wait for the moment of the switch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from sterna import clock
from sterna.errors import (
    Cancelled,
    FileCopyFailed,
    QEMULost,
    SternaError,
    StorageMoveCancelled,
    StorageMoveFailed,
    StorageMoveLeftovers,
    StorageMoveRefused,
    VMLost,
    VolumeExists,
)
from sterna.model.check import Severity, StorageReport
from sterna.model.edge import dump
from sterna.model.move import DEFAULT_KEEP_DAYS, Phase, StorageWishes
from sterna.model.operation import Operation
from sterna.model.vm import VMRecord
from sterna.move.queue import in_turn
from sterna.move.slots import Slots
from sterna.move.storage.copy import Copies
from sterna.move.storage.disks import Switchover
from sterna.move.storage.facts import making
from sterna.move.storage.files import same
from sterna.move.storage.plan import Facts, Plan, Transfer
from sterna.move.storage.preflight import look, report
from sterna.move.undo import Undo
from sterna.operations.runner import Job
from sterna.units import format_duration, format_size
from sterna.vms.machine import QUIT_TIMEOUT_S, VM
from sterna.vms.mend import Mended, mend
from sterna.vms.service import VMs

KIND = "storage-move"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was planned, from which facts, for which wishes."""

    plan: Plan
    facts: Facts
    wishes: StorageWishes
    warnings: tuple[str, ...]


class StorageMoves:
    """All moves of disks within this host."""

    def __init__(self, vms: VMs, slots: Slots) -> None:
        self._vms = vms
        self._slots = slots

    async def check(self, ref: str, wishes: StorageWishes) -> StorageReport:
        """What would become of that move. Raises VMNotFound, VMDamaged."""
        return await report(self._vms.get(ref), self._vms, wishes)

    async def begin(self, ref: str, wishes: StorageWishes) -> Operation:
        """Check, then start it as an operation.

        Raises, with nothing changed: VMNotFound, VMBusy, VMWrongState, StorageMoveRefused.
        """
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with vm.lease("a move of its disks is being planned"):
            order = await self._plan(vm, wishes)

        async def work(job: Job) -> dict[str, Any]:
            with vm.lease("its disks are moving", job.id):
                async with in_turn(self._slots, job, vm.name, "another pool") as turn:
                    now = await self._plan(vm, wishes) if turn.was_late else order
                    for warning in now.warnings:
                        job.warn(warning)
                    return await StorageMove(vm, now, job, self._vms).run()

        return self._vms.runner.start(KIND, vm=vm.name, vm_id=vm.id, work=work)

    async def _plan(self, vm: VM, wishes: StorageWishes) -> Order:
        looked = await look(vm, self._vms, wishes)
        found = looked.found
        blockers = [one for one in found if one.severity is Severity.BLOCKER]
        if blockers:
            more = f" (and {len(blockers) - 1} more)" if len(blockers) > 1 else ""
            raise StorageMoveRefused(
                vm=vm.name,
                summary=blockers[0].finding + more,
                fix=blockers[0].fix,
                findings=[dump(one) for one in found],
            )
        warnings = tuple(one.finding for one in found)
        return Order(plan=looked.plan, facts=looked.facts, wishes=wishes, warnings=warnings)


class StorageMove:
    """One move of one VM's disks."""

    def __init__(self, vm: VM, order: Order, job: Job, vms: VMs) -> None:
        self.vm = vm
        self.plan = order.plan
        self.wishes = order.wishes
        self.job = job
        self.vms = vms
        self.pools = vms.launcher.pools
        self.is_live = vm.process is not None
        streams = min(self.wishes.parallel_disks, max(1, len(self.plan.relocations)))
        speed = max(1, self.wishes.bandwidth // streams) if self.wishes.bandwidth else 0
        self.switchover: Switchover | None = None
        if self.is_live:
            self.switchover = Switchover(vm.blocks, self.pools, self._record(), speed=speed)
        self.copies = Copies(
            vm,
            self.pools,
            self.plan,
            order.facts,
            job=job,
            switchover=self.switchover,
            parallel=self.wishes.parallel_disks,
            speed=speed,
            after=self._record(),
        )
        self._phases: dict[str, float] = {}

    async def run(self) -> dict[str, Any]:
        """The report. Raises StorageMoveFailed, StorageMoveCancelled, StorageMoveLeftovers."""
        began = clock.monotonic()
        undo = Undo(self.job)
        executor = ThreadPoolExecutor(self.wishes.parallel_disks, thread_name_prefix="disks")
        try:
            async with undo:
                await self._reserve(undo, executor)
                await self._copy(executor)
                await self._switch(undo)
            await self._tidy()
        except BaseException as error:
            self._explain(error, undo)
            raise
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        return self._report(clock.monotonic() - began)

    def _explain(self, error: BaseException, undo: Undo) -> None:
        """Raise what the user should read instead of `error`."""
        error = _first(error)
        if undo.leftovers:
            raise StorageMoveLeftovers(
                vm=self.vm.name,
                outcome="are where they were",
                leftovers="; ".join(undo.leftovers),
                fix="sternad clears it at its next start",
            ) from error
        if isinstance(error, (asyncio.CancelledError, Cancelled)):
            if self.job.stopped_by == "user":
                raise StorageMoveCancelled(vm=self.vm.name, phase=self.job.phase) from error
            return
        told = isinstance(error, (StorageMoveLeftovers, StorageMoveFailed))
        if isinstance(error, SternaError) and not told:
            raise StorageMoveFailed(
                vm=self.vm.name,
                phase=self.job.phase,
                reason=error.message,
                fix=error.advice or "It may be tried again at any time",
            ) from error

    # ---- phases ----------------------------------------------------------------------------

    async def _reserve(self, undo: Undo, executor: ThreadPoolExecutor) -> None:
        self.job.phase = Phase.RESERVE
        async with self.job.step("reserve") as step, self._timed(Phase.RESERVE):
            lacking = [item for item in self.plan.templates if not await self._has(item, executor)]
            made = (*self.plan.new, *(item.target for item in lacking))
            for volume in made:
                if (path := self.pools.volume_path(volume.pool, volume.volume)).exists():
                    raise VolumeExists(path=path, pool=volume.pool, volume=volume.volume)
            if self.vm.record.made or self.vm.record.leaving:
                await self._clear()  # of an earlier step, from a pool that is back perhaps
            undo.push("remove what was made for its disks", self._clear)
            await self.vm.write(made=(*self.vm.record.made, *made))
            self.copies.templates = tuple(lacking)
            step.say(f"{_count(len(made), 'file')} will be made in {self._places()}")

    async def _has(self, item: Transfer, executor: ThreadPoolExecutor) -> bool:
        """Whether the pool has that template already, proven by its content."""
        source = self.pools.volume_path(item.source.pool, item.source.volume)
        target = self.pools.volume_path(item.target.pool, item.target.volume)
        if not await asyncio.to_thread(target.exists):
            return False
        if other := making(self.vm, self.vms).get(item.target):
            raise FileCopyFailed(
                source=item.source, target=item.target, reason=f"it is just being made for {other}"
            )
        if not await same(source, target, executor):
            raise FileCopyFailed(
                source=item.source, target=item.target, reason="another file of that name is there"
            )
        return True

    async def _clear(self) -> None:
        """By the record: before the switch it names the former images, after it the new ones."""
        try:
            await mend(self.vm, self.pools, self.vms.kept)
        except (QEMULost, VMLost):
            async with asyncio.timeout(QUIT_TIMEOUT_S):  # it ends, and all it had open with it
                await self.vm.ended.wait()
            await mend(self.vm, self.pools, self.vms.kept)

    async def _copy(self, executor: ThreadPoolExecutor) -> None:
        self.job.phase = Phase.DISKS
        async with self.job.step("disks") as step, self._timed(Phase.DISKS):
            await self.copies.run(executor)
            done = format_size(self.copies.progress.done)
            step.say(f"{done} are in {self._places()} too")

    async def _switch(self, undo: Undo) -> None:
        """The one write after which the disks are elsewhere. Cannot be cancelled once writes wait."""
        self.job.phase = Phase.HANDOVER
        async with self.job.step("switch") as step, self._timed(Phase.HANDOVER):
            await self._intend()
            if self.switchover is not None:
                await self.switchover.hold()
            with self.job.uncancellable():
                after, before = self._record(), self.vm.record
                ours = {*self.plan.new, *(item.target for item in self.copies.templates)}
                try:
                    await self.vm.write(
                        spec=after.spec,
                        checkpoints=after.checkpoints,
                        saved=after.saved,
                        made=tuple(one for one in before.made if one not in ours),
                        leaving=(*before.leaving, *self.plan.leaving),
                    )
                finally:
                    if self.vm.record.leaving != before.leaving:
                        undo.dismiss()  # from here on the record names the new images
                await self._take_effect()
            step.say(f"{self.vm.name} uses {_list(str(one.top) for one in self.plan.relocations)}")

    async def _take_effect(self) -> None:
        """Whatever QEMU says, `mend` then makes it and the record agree."""
        if self.switchover is None:
            return
        with contextlib.suppress(SternaError):
            await self.switchover.switch()

    async def _intend(self) -> None:
        if self.wishes.keep_source:
            label = f"disks moved to {_list(one.there.pool for one in self.plan.relocations)}"
            await self.vms.kept.intend(
                self.vm.name,
                self.vm.id,
                self.plan.leaving,
                label,
                self.wishes.keep_days or DEFAULT_KEEP_DAYS,
            )

    async def _tidy(self) -> None:
        self.job.phase = Phase.TIDY
        with self.job.uncancellable():
            async with self.job.step("tidy") as step, self._timed(Phase.TIDY):
                try:
                    await self._clear()
                except (SternaError, TimeoutError) as error:
                    raise StorageMoveLeftovers(
                        vm=self.vm.name,
                        outcome="have moved",
                        leftovers=f"{_list(str(v) for v in self.vm.record.leaving)} ({error})",
                        fix="sternad clears it at its next start",
                    ) from error
                self._must_have_moved()
                verb = "kept" if self.wishes.keep_source else "removed"
                step.say(f"{verb} {_count(len(self.plan.leaving), 'former file')}")

    def _must_have_moved(self) -> None:
        now = {disk.name: disk for disk in self.vm.record.spec.disks}
        for one in self.plan.relocations:
            disk = now[one.disk.name]
            if (disk.pool, disk.volume) != (one.there.pool, one.there.volume):
                raise StorageMoveFailed(
                    vm=self.vm.name,
                    phase=self.job.phase,
                    reason=f"QEMU did not switch disk {one.disk.name}",
                    fix="It may be tried again at any time",
                )

    # ---- parts -----------------------------------------------------------------------------

    def _record(self) -> VMRecord:
        """As it will be."""
        return replace(
            self.vm.record,
            spec=self.plan.spec,
            checkpoints=self.plan.checkpoints,
            saved=self.plan.saved,
        )

    def _places(self) -> str:
        return _list(f"pool {volume.pool}" for volume in self.plan.new)

    @contextlib.asynccontextmanager
    async def _timed(self, phase: Phase) -> AsyncIterator[None]:
        began = clock.monotonic()
        try:
            yield
        finally:
            self._phases[phase] = round(clock.monotonic() - began, 3)

    def _report(self, seconds: float) -> dict[str, Any]:
        moved = self.copies.progress.disks()
        disks = {
            one.disk.name: {
                "from": f"{one.disk.pool}/{one.disk.volume}",
                "to": str(one.top),
                "format": one.there.format,
                "bytes": moved[one.disk.name][0],
                "seconds": moved[one.disk.name][1],
            }
            for one in self.plan.relocations
        }
        text = (
            f"{_list(disks) or 'memory files'} of {self.vm.name} moved to {self._places()} in "
            f"{format_duration(seconds)}, {format_size(self.copies.progress.done)}"
        )
        return {
            "live": self.is_live,
            **({"held_ms": self.switchover.held_ms} if self.switchover is not None else {}),
            "total_s": round(seconds, 3),
            "phases": {str(phase): took for phase, took in self._phases.items()},
            "bytes_disks": self.copies.progress.done,
            "disks": disks,
            "text": text,
        }


def settled(vm: VM, mended: Mended, job: Job) -> dict[str, Any]:
    """The end of a storage move that its daemon did not finish: what `mend` has found.

    Raises StorageMoveFailed if it was undone.
    """
    where = ", ".join(f"{disk.name} in {disk.pool}" for disk in vm.record.spec.disks)
    if mended.was_cut or not (mended.was_through or job.phase == Phase.TIDY):
        raise StorageMoveFailed(
            vm=vm.name,
            phase=job.phase or Phase.PLAN,
            reason=f"sternad ended in mid-move; they are where they were: {where}",
            fix="It may be tried again at any time",
        )
    return {"text": f"the disks of {vm.name} had moved when sternad restarted: {where}"}


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _list(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
