"""Exports and imports as users ask for them: each is an operation that is undone if it fails.

What can be refused is refused before an operation begins; that files are what they were is found
out by its first step, before it changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from sterna.checkpoint import tree
from sterna.checkpoint.service import Checkpoints
from sterna.errors import (
    Cancelled,
    ExportCancelled,
    ExportFailed,
    ExportRefused,
    ImportCancelled,
    ImportFailed,
    ImportRefused,
    PortLeftovers,
    Refused,
    SternaError,
)
from sterna.host.store import Store
from sterna.model.check import Check, Severity
from sterna.model.disk import Checkpoint, Volume
from sterna.model.edge import dump
from sterna.model.move import Phase
from sterna.model.operation import Operation
from sterna.model.port import ExportWishes, ImportWishes, Manifest
from sterna.model.vm import RunState
from sterna.move.undo import Undo
from sterna.operations.runner import Job
from sterna.port.arrive import Arriving, spoilt
from sterna.port.checks import Facts, Question, check
from sterna.port.export import Writing, as_it_was, remove_part, require_free, without_memory
from sterna.port.facts import folder_pool, gather, read_manifest
from sterna.port.plan import Plan, plan
from sterna.port.progress import Progress
from sterna.port.unfinished import Unfinished
from sterna.units import format_size
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.service import VMs
from sterna.vms.volumes import uses

JSON = dict[str, Any]
Work = Callable[[Job], Any]
RETRY = "It may be tried again at any time"
BUSY_S = 0.5  # between looks at a VM that something else is done with
log = logging.getLogger(__name__)


class Ports:
    """All exports and imports of this host."""

    def __init__(self, vms: VMs, checkpoints: Checkpoints) -> None:
        self._vms = vms
        self._checkpoints = checkpoints
        self._store: Store[Unfinished] = Store(
            vms.config.state_dir / "ports", Unfinished, key_of=lambda one: one.id
        )
        self._unfinished: dict[str, Unfinished] = {}

    # ---- export ------------------------------------------------------------------------------

    async def export(self, ref: str, wishes: ExportWishes) -> Operation:
        """Raises, with nothing changed, what stands in the way."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        point = tree.find(vm.record, wishes.checkpoint) if wishes.checkpoint else None
        folder = Path(wishes.folder)
        await asyncio.to_thread(require_free, vm.name, folder)
        if vm.state not in (RunState.OFF, RunState.RUNNING, RunState.PAUSED):
            raise ExportRefused(
                vm=vm.name,
                folder=folder,
                reason=f"it is {vm.state}",
                fix=f"See: sterna vm show {vm.name}",
            )

        async def work(job: Job) -> JSON:
            with vm.lease("being exported", job.id):
                return await self._export(vm, job, wishes, point)

        return self._vms.runner.start("export", vm=vm.name, vm_id=vm.id, work=work)

    async def _export(
        self, vm: VM, job: Job, wishes: ExportWishes, point: Checkpoint | None
    ) -> JSON:
        names = {"vm": vm.name, "folder": wishes.folder}
        undo = Undo(job)
        try:
            async with undo:
                if point is not None:  # as it is now that nobody else can change it
                    point = tree.find(vm.record, point.id)
                report = await self._write(vm, job, wishes, point, undo)
        except BaseException as thrown:
            raise _told(
                thrown,
                job,
                undo,
                failed=lambda why, fix: ExportFailed(**names, reason=why, fix=fix),
                cancelled=lambda: ExportCancelled(**names),
                what="export",
            ) from thrown
        return report

    async def _write(
        self, vm: VM, job: Job, wishes: ExportWishes, point: Checkpoint | None, undo: Undo
    ) -> JSON:
        job.phase = Phase.RESERVE
        name = f"export-{job.id[:8]}" if vm.process is not None and point is None else ""
        part = f"{wishes.folder}.{job.id[:8]}.part"
        left = Unfinished(
            id=job.id,
            vm=vm.name,
            vm_id=vm.id,
            folder=wishes.folder,
            part=part,
            checkpoint=name,
        )
        undo.push("forget the export", lambda: self._forget(job.id, undo))
        await self._store.write(job.id, left)
        if name:
            undo.push(f"merge checkpoint {name}", lambda: self._merge(vm, job, name))
            async with job.step("checkpoint") as step:
                await self._checkpoints.freeze(vm, job, name)
                step.say(
                    f"{vm.name} is exported as it was at checkpoint {name}, which is merged then"
                )
            point = tree.find(vm.record, name)
        record = vm.record if point is None else as_it_was(vm.record, point)
        record = record if wishes.memory else without_memory(record)
        writing = Writing(record, self._vms.launcher, wishes.folder, job)
        items = await asyncio.to_thread(writing.look, is_off=vm.process is None)
        job.phase = Phase.DISKS
        undo.push(f"remove {part}", lambda: asyncio.to_thread(remove_part, part))
        async with job.step("disks") as step:
            try:
                manifest = await writing.run(items)
            except OSError as error:
                raise ExportFailed(
                    vm=vm.name, folder=wishes.folder, reason=error.strerror or error, fix=RETRY
                ) from error
            size = sum(one.allocated for one in manifest.files)
            out = ", ".join(str(one) for one in chain.media(record.spec))
            cds = f"; its drives are empty there, its CDs stay where they are: {out}" if out else ""
            step.say(f"{_count(items)}, {format_size(size)}, are in {wishes.folder}{cds}")
        undo.dismiss()
        job.phase = Phase.TIDY
        with job.uncancellable():
            if not name or await self._merged(vm, job, name):
                await self._store.delete(job.id)
        return {
            "text": f"{vm.name} is exported to {wishes.folder}: {_count(items)}, "
            f"{format_size(size)}{cds}",
            "folder": wishes.folder,
            "files": len(items),
            "bytes_files": size,
            "checkpoints": len(tree.visible(record)),
            "live": vm.process is not None,
        }

    async def _merged(self, vm: VM, job: Job, name: str) -> bool:
        """The export is whole, whatever becomes of the checkpoint that was made for it."""
        try:
            async with job.step("merge") as step:
                await self._merge(vm, job, name)
                step.say(f"checkpoint {name} is merged")
        except SternaError as error:
            job.warn(f"{error.message}; sternad does it at its next start")
            return False
        return True

    async def _forget(self, operation: str, undo: Undo) -> None:
        """Unless something is left: then it is cleared at the next start."""
        if not undo.leftovers:
            await self._store.delete(operation)

    async def _merge(self, vm: VM, job: Job, name: str) -> None:
        found = [one.id for one in tree.visible(vm.record) if one.name == name]
        if found:
            await vm.write(**tree.hidden(vm.record, found))
            phase = job.phase
            await self._checkpoints.merge(vm, job, name)
            job.phase = phase

    # ---- import ------------------------------------------------------------------------------

    async def check(self, wishes: ImportWishes) -> list[Check]:
        """All that an import would find; files are read and compared with their hashes."""
        manifest, planned, facts = await self._look(wishes)
        if not _missing(manifest, facts):
            bad = await spoilt(manifest, Path(wishes.folder), _unwatched)
            facts = replace(facts, spoilt=bad)
        return check(Question(manifest=manifest, wishes=wishes, plan=planned, facts=facts))

    async def begin(self, wishes: ImportWishes) -> Operation:
        """Raises NotAnExport, ImportRefused with nothing changed."""
        manifest, planned, facts = await self._look(wishes)
        question = Question(manifest=manifest, wishes=wishes, plan=planned, facts=facts)
        warnings = _require(question)
        spec = planned.record.spec

        async def work(job: Job) -> JSON:
            for warning in warnings:
                job.warn(warning)
            return await self._import(job, question)

        return self._vms.runner.start("import", vm=spec.name, vm_id=spec.id, work=work)

    async def _look(self, wishes: ImportWishes) -> tuple[Manifest, Plan, Facts]:
        folder = Path(wishes.folder)
        manifest = await asyncio.to_thread(read_manifest, folder)
        pool = ""
        if wishes.register:
            pool = await asyncio.to_thread(folder_pool, folder, self._vms.launcher.pools)
        planned = plan(manifest, wishes, folder_pool=pool)
        return manifest, planned, await gather(manifest, wishes, planned, self._vms)

    async def _import(self, job: Job, question: Question) -> JSON:
        names = {"vm": question.name, "folder": question.wishes.folder}
        undo = Undo(job)
        try:
            async with undo:
                return await self._arrive(job, question, undo)
        except BaseException as thrown:
            raise _told(
                thrown,
                job,
                undo,
                failed=lambda why, fix: ImportFailed(**names, reason=why, fix=fix),
                cancelled=lambda: ImportCancelled(**names),
                what="import",
            ) from thrown

    async def _arrive(self, job: Job, question: Question, undo: Undo) -> JSON:
        wishes, manifest, planned = question.wishes, question.manifest, question.plan
        arriving = Arriving(self._vms, manifest, wishes, planned, job)
        arriving.hold(undo)
        with arriving.vm.lease("being imported", job.id):
            job.phase = Phase.PLAN
            async with job.step("check") as step:
                progress = Progress(job)
                async with progress.shown(sum(one.size for one in manifest.files)):
                    bad = await spoilt(manifest, Path(wishes.folder), progress.add)
                _require(replace(question, facts=replace(question.facts, spoilt=bad)))
                step.say(f"{_count(manifest.files)}, as exported")
            present = [one for one in planned.arrivals if one.place in question.facts.templates]
            coming = [one.place for one in planned.arrivals if one not in present]
            if not wishes.register:
                await asyncio.to_thread(arriving.require_free, coming)
            left = Unfinished(
                id=job.id,
                vm=question.name,
                vm_id=planned.record.spec.id,
                folder=wishes.folder,
                files=() if wishes.register else tuple(coming),
                pool=planned.new_pool,
            )
            undo.push("forget the import", lambda: self._forget(job.id, undo))
            await self._store.write(job.id, left)
            if wishes.register:
                await arriving.make_pool(undo)
            else:
                job.phase = Phase.DISKS
                undo.push("remove its files", lambda: self._remove(left, arriving.others))
                async with job.step("disks") as step:
                    await arriving.copy(present)
                    step.say(f"{_count(coming)} copied")
            job.phase = Phase.TIDY
            with job.uncancellable():
                vm = await arriving.define(undo)
                await arriving.seal()
                await self._store.delete(job.id)
        how = "registered where it is" if wishes.register else f"copied from {wishes.folder}"
        return {
            "text": f"{vm.name} is imported, {how}; it is off",
            "name": vm.name,
            "id": vm.id,
            "pools": sorted({one.place.pool for one in planned.arrivals}),
            "files": len(planned.arrivals),
        }

    async def _remove(self, left: Unfinished, others: Collection[Volume] = ()) -> None:
        """Files of an import that nobody uses after all; not those of `others`."""
        used = uses(vm.record for vm in self._vms.all() if vm.is_here and vm.id != left.vm_id)
        for place in left.files:
            if place not in used and place not in others:
                await self._vms.launcher.pools.delete_volume(place.pool, place.volume)

    # ---- after a restart ---------------------------------------------------------------------

    def load(self) -> None:
        """What a former life of this daemon left, before anything else."""
        self._unfinished, _ = self._store.load()

    def settlers(self) -> Mapping[str, Callable[[Operation], Work]]:
        """How an unfinished operation is told, by its kind."""
        return {"export": self._settler, "import": self._settler}

    def _settler(self, operation: Operation) -> Work:
        async def work(_job: Job) -> JSON:
            left = self._unfinished.get(operation.id)
            folder = left.folder if left else "its folder"
            names = {"vm": operation.vm, "folder": folder, "reason": "sternad ended meanwhile"}
            if operation.kind == "export":
                if left is not None and await asyncio.to_thread(Path(left.folder).exists):
                    return {"text": f"{operation.vm} is exported to {folder}", "folder": folder}
                raise ExportFailed(**names, fix=RETRY)
            vm = self._vms.by_id(operation.vm_id)
            if vm is not None and vm.is_here:
                return {"text": f"{vm.name} is imported", "name": vm.name, "id": vm.id}
            raise ImportFailed(**names, fix=RETRY)

        return work

    async def clear(self) -> None:
        """Remove what exports and imports of a former life left; what cannot be now stays noted."""
        for left in self._unfinished.values():
            try:
                await self._clear(left)
                if left.checkpoint:
                    self._vms.runner.background(self._merge_late(left), "merge what an export made")
                else:
                    await self._store.delete(left.id)
            except (SternaError, OSError) as error:
                log.warning(
                    "what an import or export of %s left is still there: %s", left.vm, error
                )

    async def _clear(self, left: Unfinished) -> None:
        await asyncio.to_thread(remove_part, left.part)
        vm = self._vms.by_id(left.vm_id)
        is_here = vm is not None and vm.is_here
        if any(one.key == left.vm_id for one in self._vms.damaged):
            return  # its record cannot be read: whose these files are is not known
        if left.files and not is_here:
            await self._remove(left)
        if not left.part and not is_here:
            await asyncio.to_thread(self._vms.launcher.nvram(left.vm_id).unlink, missing_ok=True)
        if left.pool and not is_here and not self._vms.users_of_pool(left.pool):
            with contextlib.suppress(SternaError):
                await self._vms.launcher.pools.delete(left.pool, self._vms.users_of_pool)

    async def _merge_late(self, left: Unfinished) -> None:
        """The checkpoint of an export that was cut: deleted as soon as nothing else is done with its VM."""
        vm = self._vms.by_id(left.vm_id)
        try:
            while vm is not None and vm.is_here and _is_there(vm, left.checkpoint):
                if not vm.doing and not self._vms.runner.active(vm.id):
                    begun = self._checkpoints.delete(vm.id, left.checkpoint, subtree=False)
                    await self._vms.runner.wait(begun.id)
                await asyncio.sleep(BUSY_S)
            await self._store.delete(left.id)
        except SternaError as error:
            log.warning("checkpoint %s of %s stays for now: %s", left.checkpoint, left.vm, error)


def _is_there(vm: VM, checkpoint: str) -> bool:
    return any(one.name == checkpoint for one in tree.visible(vm.record))


def _count(files: Sized) -> str:
    return f"{len(files)} file" + ("" if len(files) == 1 else "s")


def _unwatched(_length: int) -> None:
    return


def _missing(manifest: Manifest, facts: Facts) -> bool:
    return any(facts.sizes.get(one.name) != one.size for one in manifest.files)


def _require(question: Question) -> list[str]:
    """The findings that do not stand in the way. Raises ImportRefused if one does."""
    found = check(question)
    blockers = [one for one in found if one.severity is Severity.BLOCKER]
    if blockers:
        more = f" (and {len(blockers) - 1} more)" if len(blockers) > 1 else ""
        raise ImportRefused(
            vm=question.name,
            folder=question.wishes.folder,
            summary=blockers[0].finding + more,
            fix=blockers[0].fix,
            findings=[dump(one) for one in found],
        )
    return [one.finding for one in found]


def _told(  # noqa: PLR0913 - what happened, and how it is told
    thrown: BaseException,
    job: Job,
    undo: Undo,
    *,
    failed: Callable[[str, str], SternaError],
    cancelled: Callable[[], SternaError],
    what: str,
) -> BaseException:
    """What the user should read."""
    error = thrown
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if undo.leftovers:
        return PortLeftovers(
            what=what,
            vm=job.operation.vm,
            outcome="was undone",
            leftovers="; ".join(undo.leftovers),
        )
    if isinstance(error, (asyncio.CancelledError, Cancelled)):
        return cancelled() if job.stopped_by == "user" else error
    if isinstance(error, SternaError) and not isinstance(
        error, (Refused, ExportFailed, ImportFailed)
    ):
        return failed(error.message, error.advice or RETRY)
    return error
