"""A VM made of an exported folder: its files are copied into pools, or used where they are.

Promises: nothing changes before everything has been looked at, contents and hashes too; the VM is
there, whole and off, or nothing of it is. A copy is compared with the hash that was exported and
read back. The folder is only read, unless it is registered: then its disks are the VM's own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sterna import clock
from sterna.errors import FileCopyFailed, SternaError, VMExists, VolumeExists
from sterna.host.store import replace_file
from sterna.model.disk import Volume
from sterna.model.host import Pool
from sterna.model.port import DISKS, MANIFEST, ImportWishes, Manifest
from sterna.model.vm import VMRecord
from sterna.move.undo import Undo
from sterna.operations.runner import Job
from sterna.port.copying import carry, sha256
from sterna.port.export import sync
from sterna.port.facts import REGISTERED
from sterna.port.plan import Arrival, Plan
from sterna.port.progress import Progress
from sterna.qemu import image
from sterna.qemu.argv import FirmwareFiles
from sterna.vms.machine import VM
from sterna.vms.service import VMs


async def spoilt(manifest: Manifest, folder: Path, read: Callable[[int], None]) -> frozenset[str]:
    """Files whose content is not what was exported. Raises FileCopyFailed."""
    found = set()
    for one in manifest.files:
        if await sha256(folder / DISKS / one.name, read) != one.sha256:
            found.add(one.name)
    return frozenset(found)


class Arriving:
    """One import whose checks have passed."""

    def __init__(
        self, vms: VMs, manifest: Manifest, wishes: ImportWishes, plan: Plan, job: Job
    ) -> None:
        self._vms = vms
        self._pools = vms.launcher.pools
        self._manifest = manifest
        self._wishes = wishes
        self._plan = plan
        self._job = job
        self._folder = Path(wishes.folder)
        self._progress = Progress(job)
        self._tombstone = vms.by_id(plan.record.spec.id)
        self.record = _above(plan.record, self._tombstone, self._folder, manifest)
        self.vm = vms.handle(self.record)
        self.others: set[Volume] = set()  # files that came meanwhile: no undo removes them

    def hold(self, undo: Undo) -> None:
        """Nobody else takes the name or the id from here on. Raises VMExists."""
        spec, known = self.record.spec, self._vms.by_id(self.record.spec.id)
        if self._vms.find(spec.name) is not None or known is not self._tombstone:
            raise VMExists(vm=spec.name, host=self._vms.config.name)
        if self._tombstone is not None and self._tombstone.is_here:
            raise VMExists(vm=spec.name, host=self._vms.config.name)
        self._vms.require_unused(spec)
        self._vms.adopt(self.vm)

        async def let_go() -> None:
            self._vms.forget(self.vm)
            if self._tombstone is not None:
                self._vms.adopt(self._tombstone)

        undo.push("let its name go", let_go)

    async def make_pool(self, undo: Undo) -> None:
        """The pool that the folder's disks are from now on."""
        name = self._plan.new_pool
        if not name:
            return
        undo.push("forget the folder's pool", lambda: self.drop_pool(name))
        await self._pools.create(Pool(name=name, path=str(self._folder / DISKS)))

    async def drop_pool(self, name: str) -> None:
        with contextlib.suppress(SternaError):
            await self._pools.delete(name, lambda _name: ())

    def require_free(self, coming: Sequence[Volume]) -> None:
        """Pools are there still, and nobody has put a file there while contents were read.

        Raises VolumeExists, PoolUnusable; blocks.
        """
        for pool in {place.pool for place in coming}:
            self._pools.require(pool)
        for place in coming:
            path = self._pools.volume_path(place.pool, place.volume)
            if os.path.lexists(path):
                raise _exists(path, place)

    async def copy(self, present: Sequence[Arrival]) -> None:
        """All files but the templates in `present`.

        Raises FileCopyFailed, ImageFailed; VolumeExists, with the file among `others`.
        """
        known = {one.name: one for one in self._manifest.files}
        coming = [one for one in self._plan.arrivals if one not in present]
        async with self._progress.shown(sum(known[one.name].size for one in coming)):
            for one in coming:
                source = self._folder / DISKS / one.name
                target = self._pools.volume_path(one.place.pool, one.place.volume)
                try:
                    found = await carry(source, target, self._progress.add)
                except FileCopyFailed as error:
                    if isinstance(error.__cause__, FileExistsError):
                        self.others.add(one.place)
                        raise _exists(target, one.place) from error
                    raise
                if found != known[one.name].sha256:
                    raise FileCopyFailed(
                        source=source, target=target, reason="it was changed since it was checked"
                    )
        for one in coming:
            if one.below is not None:
                path = self._pools.volume_path(one.place.pool, one.place.volume)
                await image.put_on(path, one.below)
        for pool in dict.fromkeys(one.place.pool for one in coming):
            await asyncio.to_thread(sync, Path(self._pools.get(pool).path))

    async def define(self, undo: Undo) -> VM:
        """The record: from here on the VM is this host's."""
        record = self.record
        if (firmware := self._vms.launcher.firmware(record.spec)) is not None:
            path = firmware.variables
            undo.push("remove its UEFI variables", lambda: asyncio.to_thread(path.unlink, True))
            await asyncio.to_thread(_variables, self._manifest, firmware)
        if record.spec.tpm:
            record = self.record = self.vm.record = await self._tpm(undo)
        self._vms.launcher.check_files(record)
        await self._vms.store.write(record.spec.id, record)
        undo.dismiss()
        return self.vm

    async def _tpm(self, undo: Undo) -> VMRecord:
        """Its own, or a new one for a VM that is another now. Raises TPMMissing, GuardianMissing."""
        record, tpms = self.record, self._vms.launcher.tpms
        vm_id = record.spec.id
        undo.push("remove its TPM", lambda: asyncio.to_thread(tpms.remove, vm_id))
        if vm_id != self._manifest.spec.id:
            self._job.warn(f"{record.spec.name} is another VM than was exported: its TPM is new")
            return replace(record, protector=tpms.protector(record.spec))
        tpms.require(record)
        await asyncio.to_thread(tpms.put, vm_id, base64.b64decode(self._manifest.tpm))
        return record

    async def seal(self) -> None:
        """A registered folder is no export any more: its disks change."""
        if self._wishes.register:
            try:
                path = self._folder / MANIFEST
                await asyncio.to_thread(path.rename, self._folder / REGISTERED)
            except OSError as error:
                self._job.warn(f"{MANIFEST} in {self._folder} could not be renamed: {error}")


def _variables(manifest: Manifest, firmware: FirmwareFiles) -> None:
    firmware.variables.parent.mkdir(parents=True, exist_ok=True)
    exported = base64.b64decode(manifest.nvram)
    replace_file(firmware.variables, exported or firmware.template.read_bytes())


def _exists(path: Path, place: Volume) -> VolumeExists:
    return VolumeExists(path=path, pool=place.pool, volume=place.volume)


def _above(record: VMRecord, tombstone: VM | None, folder: Path, manifest: Manifest) -> VMRecord:
    """Owned in an epoch above all that this host knows of it."""
    note = f"{clock.now()} imported from {folder}, exported by {manifest.host} {manifest.exported}"
    record = replace(record, notes=(note,), created=record.created or clock.now())
    if tombstone is None:
        return record
    before = tombstone.record
    epoch = max(before.ownership.epoch, before.owned_epoch) + 1
    return replace(
        record,
        ownership=replace(record.ownership, epoch=epoch),
        owned_epoch=before.owned_epoch,
        fenced=before.fenced,
    )
