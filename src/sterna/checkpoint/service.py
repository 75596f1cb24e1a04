"""Checkpoints and saved states, as users ask for them: each long action is an operation.

What can be refused is refused before an operation begins, with nothing changed. An operation that
fails says so in the words of its family: undone, or what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from sterna import clock
from sterna.checkpoint import tree
from sterna.checkpoint.apply import Applying, require_loadable
from sterna.checkpoint.create import Creation, require_possible
from sterna.checkpoint.merge import Merger
from sterna.checkpoint.save import Saving
from sterna.errors import (
    ApplyCancelled,
    ApplyFailed,
    Cancelled,
    CheckpointCancelled,
    CheckpointFailed,
    CheckpointLeftovers,
    Failed,
    MergeCancelled,
    NotMerged,
    NotSaved,
    SaveCancelled,
    SaveFailed,
    SternaError,
    VMWrongState,
)
from sterna.model import edge
from sterna.model.checkpoint import ApplyWishes, CheckpointWishes
from sterna.model.disk import Checkpoint
from sterna.model.operation import Operation
from sterna.model.vm import RunState, VMRecord
from sterna.move.undo import Undo
from sterna.operations.runner import Job
from sterna.vms import saved
from sterna.vms.machine import VM
from sterna.vms.service import VMs

RETRY = "It may be tried again at any time"
JSON = dict[str, Any]


class Step(Protocol):
    """What an operation does, with the undo that it ends with if it fails."""

    undo: Undo

    async def run(self) -> JSON: ...


class Checkpoints:
    """All of them, of all VMs of this host."""

    def __init__(self, vms: VMs) -> None:
        self._vms = vms

    # ---- looking -----------------------------------------------------------------------------

    def list(self, ref: str) -> list[JSON]:
        """The checkpoints of a VM, parents before children."""
        record = self._vms.get(ref).record
        return [_row(record, one) for one in tree.visible(record)]

    # ---- making ------------------------------------------------------------------------------

    def create(self, ref: str, wishes: CheckpointWishes) -> Operation:
        """Make one, with memory if it runs and nothing else is wished."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with_memory = require_possible(vm, wishes.memory)
        name = wishes.name or _now()
        tree.require_free(vm.record, name)

        async def work(job: Job) -> JSON:
            with vm.lease(f"checkpoint {name} is being made", job.id):
                return await self._create(vm, job, name, with_memory, wishes.max_downtime_ms)

        return self._start("checkpoint", vm, work)

    async def freeze(self, vm: VM, job: Job, name: str, *, hidden: bool = False) -> None:
        """One of disks only, for another operation, whose lease the caller holds.

        A hidden one is as if its user had deleted it already: `merge` ends it.
        """
        with_memory = require_possible(vm, memory=False)
        pause_ms = CheckpointWishes().max_downtime_ms
        await self._create(vm, job, name, with_memory, pause_ms, hidden=hidden)

    async def _create(  # noqa: PLR0913 - what, how, and who does it
        self,
        vm: VM,
        job: Job,
        name: str,
        with_memory: bool,
        max_downtime_ms: int,
        *,
        hidden: bool = False,
    ) -> JSON:
        return await _told(
            job,
            Creation(
                self._vms,
                vm,
                job,
                name=name,
                with_memory=with_memory,
                max_downtime_ms=max_downtime_ms,
                hidden=hidden,
            ),
            failed=lambda why, fix: CheckpointFailed(
                vm=vm.name, checkpoint=name, reason=why, fix=fix
            ),
            cancelled=lambda: CheckpointCancelled(vm=vm.name, checkpoint=name),
            outcome=f"the checkpoint {name} of {vm.name} was not made",
            fix=f"Restart sternad, then: sterna vm checkpoint delete {vm.name} {name}",
        )

    # ---- going back --------------------------------------------------------------------------

    def apply(self, ref: str, name: str, wishes: ApplyWishes) -> Operation:
        """Back to a checkpoint. Raises, with nothing changed, what stands in the way."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        checkpoint = tree.find(vm.record, name)
        keeps_memory = bool(wishes.keep) and require_possible(vm, None)
        if wishes.keep:
            tree.require_free(vm.record, wishes.keep)
        if not wishes.force and (vm.process is not None or vm.record.saved is not None):
            state = "saved" if vm.process is None else vm.state
            raise VMWrongState(
                action="go back with",
                vm=vm.name,
                state=f"{state}, and all that it did since its last checkpoint would be lost",
                fix=f"Do it all the same: sterna vm checkpoint apply {vm.name} {name} --force "
                f"(with --keep NAME it stays as a checkpoint)",
            )
        if wishes.memory:
            require_loadable(self._vms, vm, checkpoint)

        async def work(job: Job) -> JSON:
            with vm.lease(f"going back to checkpoint {checkpoint.name}", job.id):
                if wishes.keep:
                    kept = CheckpointWishes(name=wishes.keep)
                    await self._create(vm, job, kept.name, keeps_memory, kept.max_downtime_ms)
                found = tree.find(vm.record, checkpoint.id)
                return await self._apply(vm, job, found, wishes.memory)

        return self._start("apply", vm, work)

    async def _apply(self, vm: VM, job: Job, checkpoint: Checkpoint, with_memory: bool) -> JSON:
        names = {"vm": vm.name, "checkpoint": checkpoint.name}
        going = Applying(self._vms, vm, job, checkpoint, with_memory=with_memory)
        return await _told(
            job,
            going,
            failed=lambda why, fix: ApplyFailed(
                **names, outcome=going.outcome, reason=why, fix=fix
            ),
            cancelled=lambda: ApplyCancelled(**names, outcome=going.outcome),
            outcome=f"{checkpoint.name} was not applied",
        )

    # ---- deleting ----------------------------------------------------------------------------

    def delete(self, ref: str, name: str, *, subtree: bool) -> Operation:
        """Delete one, or with all that came after it; their images are merged with what rests on
        them. One that was deleted already and not merged: merges it now.
        """
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        checkpoint = tree.find(vm.record, name, hidden_too=True)
        which = tree.subtree(vm.record, checkpoint.id) if subtree else (checkpoint.id,)

        async def work(job: Job) -> JSON:
            with vm.lease(f"checkpoint {checkpoint.name} is being deleted", job.id):
                if any(one.id in which and not one.hidden for one in vm.record.checkpoints):
                    await vm.write(**tree.hidden(vm.record, which))
                return await self.merge(vm, job, checkpoint.name)

        return self._start("merge", vm, work)

    async def merge(self, vm: VM, job: Job, name: str) -> JSON:
        """Merge what is deleted; the caller holds the lease. Raises NotMerged, MergeCancelled."""
        job.phase = "merge"
        merger = Merger(vm, self._vms.launcher, self._vms.kept, job)
        names = {"vm": vm.name, "checkpoint": name}
        try:
            async with job.step("merge") as step:
                await merger.run()
                step.say(f"{merger.merged} images were merged")
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and job.stopped_by == "user":
                raise MergeCancelled(**names) from error
            if isinstance(error, SternaError):
                raise NotMerged(**names, reason=error.message) from error
            raise
        waiting = [one.name for one in vm.record.checkpoints if one.hidden]
        text = f"checkpoint {name} of {vm.name} is deleted"
        if waiting:
            text += f"; images of {', '.join(waiting)} stay while several branches rest on them"
        return {
            "text": text,
            "checkpoint": name,
            "images_merged": merger.merged,
            "waiting": waiting,
        }

    async def rename(self, ref: str, name: str, new: str) -> JSON:
        """Give a checkpoint another name."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with vm.lease("a checkpoint is being renamed"):
            checkpoint = tree.find(vm.record, name)
            if checkpoint.name != new:
                tree.require_free(vm.record, new)
                await vm.write(**tree.renamed(vm.record, checkpoint, new))
            return _row(vm.record, tree.find(vm.record, checkpoint.id))

    # ---- saved state -------------------------------------------------------------------------

    def save(self, ref: str) -> Operation:
        """Memory into a file, then off."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        if vm.state not in (RunState.RUNNING, RunState.PAUSED) or vm.monitor is None:
            raise VMWrongState(
                action="save",
                vm=vm.name,
                state="saved already" if vm.record.saved else vm.state,
                fix=f"See: sterna vm show {vm.name}",
            )

        async def work(job: Job) -> JSON:
            with vm.lease("being saved", job.id):
                return await _told(
                    job,
                    Saving(self._vms, vm, job),
                    failed=lambda why, fix: SaveFailed(vm=vm.name, reason=why, fix=fix),
                    cancelled=lambda: SaveCancelled(vm=vm.name),
                    outcome=f"{vm.name} was not saved",
                )

        return self._start("save", vm, work)

    def restore(self, ref: str) -> Operation:
        """Go on from the saved state, paused if it was."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        self._vms.require_starts()
        self._require_saved(vm)

        async def work(job: Job) -> JSON:
            with vm.lease("being restored", job.id):
                async with job.step("restore") as step:
                    await saved.go_on(vm, self._vms.launcher, self._vms.kept)
                    step.say(f"{vm.name} goes on from where it was saved")
            return {"text": f"{vm.name} goes on from where it was saved, it is {vm.state}"}

        return self._start("restore", vm, work)

    async def discard(self, ref: str) -> JSON:
        """Throw the saved state away; the view of the VM, which boots when it is started."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        self._require_saved(vm)
        with vm.lease("its saved state is being discarded"):
            await saved.discard(vm, self._vms.launcher, self._vms.kept)
        return self._vms.view(ref)

    def _require_saved(self, vm: VM) -> None:
        if vm.record.saved is None or vm.process is not None:
            raise NotSaved(vm=vm.name)

    def _start(self, kind: str, vm: VM, work: Any) -> Operation:
        return self._vms.runner.start(kind, vm=vm.name, vm_id=vm.id, work=work)


async def _told(  # noqa: PLR0913 - the words for each way it can end
    job: Job,
    step: Step,
    *,
    failed: Callable[[str, str], SternaError],
    cancelled: Callable[[], SternaError],
    outcome: str,
    fix: str = "Restart sternad: it clears it",
) -> JSON:
    """What `step` returns, or what its user should read instead of its error."""
    try:
        return await step.run()
    except BaseException as thrown:
        error = _first(thrown)
        if step.undo.leftovers:
            left = "; ".join(step.undo.leftovers)
            raise CheckpointLeftovers(
                vm=job.operation.vm, outcome=outcome, leftovers=left, fix=fix
            ) from thrown
        if isinstance(error, (asyncio.CancelledError, Cancelled)):
            if job.stopped_by == "user":
                raise cancelled() from thrown
            raise
        if isinstance(error, Failed):
            raise failed(error.message, error.advice or RETRY) from thrown
        if error is not thrown:
            raise error from thrown
        raise


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _now() -> str:
    """A name that says when: 2026-11-22-231504."""
    return datetime.fromisoformat(clock.now()).astimezone().strftime("%Y-%m-%d-%H%M%S")


def _row(record: VMRecord, one: Checkpoint) -> JSON:
    parent = tree.shown_parent(record, one.parent)
    here = tree.shown_parent(record, record.at)
    return {
        "id": one.id,
        "name": one.name,
        "created": one.created,
        "parent": parent.name if parent else "",
        "is_current": here is not None and here.id == one.id,
        "memory": edge.dump(one.memory) if one.memory else None,
        "disks": {name: image.volume for name, image in one.images.items()},
    }
