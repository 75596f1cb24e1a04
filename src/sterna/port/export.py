"""A VM written into a folder: its spec, its disks with all their checkpoints, its memory if wished.

Promises: the folder appears under its name when it is whole and on the disk; nothing that exists is
overwritten; the VM stays this host's and is not changed. One that runs is exported as it was at one
moment: at a checkpoint, if need be one that is made for this and merged afterwards.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sterna import clock
from sterna.errors import ExportRefused, SternaError
from sterna.host.store import replace_file
from sterna.model.disk import Checkpoint, Volume
from sterna.model.edge import dump_json
from sterna.model.port import DISKS, MANIFEST, ExportedFile, Manifest
from sterna.model.vm import VMRecord
from sterna.operations.runner import Job
from sterna.port.copying import carry
from sterna.port.progress import Progress
from sterna.qemu import image
from sterna.units import format_size
from sterna.vms import chain, media
from sterna.vms.launch import Launcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file of a VM."""

    place: Volume
    path: Path
    size: int
    allocated: int
    is_template: bool


def as_it_was(record: VMRecord, checkpoint: Checkpoint) -> VMRecord:
    """The VM at a checkpoint, with those before it; with its memory as the saved state."""
    disks = tuple(
        replace(disk, volume=frozen.volume, format=frozen.format)
        if (frozen := checkpoint.images.get(disk.name))
        else disk
        for disk in record.spec.disks
    )
    before = {one.id for one in chain.line(record, checkpoint.parent)}
    return replace(
        record,
        spec=replace(record.spec, disks=disks),
        checkpoints=tuple(one for one in record.checkpoints if one.id in before),
        at=checkpoint.parent,
        saved=checkpoint.memory,
    )


def without_memory(record: VMRecord) -> VMRecord:
    """Disks alone."""
    points = tuple(replace(one, memory=None) for one in record.checkpoints)
    return replace(record, saved=None, checkpoints=points)


def places(record: VMRecord) -> Iterator[tuple[Volume, bool]]:
    """Every file that the VM needs, and whether it is a template."""
    own = chain.own_files(record)
    yield from ((place, False) for place in own)
    bases = (
        Volume(pool=disk.pool, volume=base.volume)
        for disk in record.spec.disks
        for base in disk.base
    )
    yield from ((place, True) for place in dict.fromkeys(bases) if place not in own)


class Writing:
    """The folder being written. The caller holds the VM's lease, and removes `part` if it fails."""

    def __init__(self, record: VMRecord, launcher: Launcher, folder: str, job: Job) -> None:
        self._record = record
        self._launcher = launcher
        self._job = job
        self.folder = Path(folder)
        self.part = Path(f"{folder}.{job.id[:8]}.part")
        self._progress = Progress(job)

    def _refused(self, reason: str, fix: str) -> ExportRefused:
        return ExportRefused(vm=self._record.spec.name, folder=self.folder, reason=reason, fix=fix)

    def look(self, *, is_off: bool) -> list[Item]:
        """All files. Raises ExportRefused if it cannot succeed; blocks."""
        items = [self._item(place, is_template) for place, is_template in places(self._record)]
        for item in items:
            if is_off and not item.is_template and image.is_in_use(item.path):
                raise self._refused(
                    f"another program has {item.path} open",
                    f"End that program; find it with: lsof {item.path}",
                )
        names: dict[str, Item] = {}
        for item in items:
            other = names.setdefault(item.place.volume, item)
            if other is not item:
                raise self._refused(
                    f"{other.place} and {item.place} have the same name, and all files lie side by "
                    f"side there",
                    f"Bring its disks into one pool: sterna move {self._record.spec.name} "
                    f"--storage {item.place.pool}",
                )
        require_free(self._record.spec.name, self.folder)
        needed, room = sum(item.allocated for item in items), os.statvfs(self.folder.parent)
        if needed > room.f_bavail * room.f_frsize:
            free = format_size(room.f_bavail * room.f_frsize)
            raise self._refused(
                f"it needs {format_size(needed)}, and {free} are free there",
                "Make room, or name another folder",
            )
        return items

    def _item(self, place: Volume, is_template: bool) -> Item:
        try:
            path = self._launcher.pools.volume_path(place.pool, place.volume)
            stat = path.stat()
        except (OSError, SternaError) as error:
            name = self._record.spec.name
            reason = f"{place} cannot be read: {getattr(error, 'strerror', '') or error}"
            raise self._refused(reason, f"See: sterna disk check {name}") from error
        return Item(
            place=place,
            path=path,
            size=stat.st_size,
            allocated=stat.st_blocks * 512,
            is_template=is_template,
        )

    async def run(self, items: list[Item]) -> Manifest:
        """Copy all, then give the folder its name. Raises FileCopyFailed, OSError."""
        disks = self.part / DISKS
        await asyncio.to_thread(disks.mkdir, parents=True, mode=0o711)
        files = []
        async with self._progress.shown(sum(item.size for item in items)):
            for item in items:
                target = disks / item.place.volume
                found = await carry(item.path, target, self._progress.add)
                files.append(
                    ExportedFile(
                        name=item.place.volume,
                        size=item.size,
                        allocated=item.allocated,
                        sha256=found,
                        is_template=item.is_template,
                    )
                )
        manifest = self._manifest(files)
        with self._job.uncancellable():
            await asyncio.to_thread(self._finish, manifest)
        return manifest

    def _manifest(self, files: list[ExportedFile]) -> Manifest:
        record = self._record
        variables = b""
        with contextlib.suppress(FileNotFoundError):
            variables = self._launcher.nvram(record.spec.id).read_bytes()
        return Manifest(
            exported=clock.now(),
            host=self._launcher.host,
            spec=media.without(record.spec),  # a CD is not the VM's, and not in the folder
            created=record.created,
            checkpoints=record.checkpoints,
            at=record.at,
            saved=record.saved,
            cpu_next=record.cpu_next,
            nvram=base64.b64encode(variables).decode(),
            tpm=base64.b64encode(self._launcher.tpms.state(record.spec.id)).decode(),
            protector=record.protector,
            files=tuple(files),
        )

    def _finish(self, manifest: Manifest) -> None:
        sync(self.part / DISKS)
        replace_file(self.part / MANIFEST, dump_json(manifest, indent=2) + b"\n")
        require_free(self._record.spec.name, self.folder)
        self.part.rename(self.folder)
        sync(self.folder.parent)


def require_free(vm: str, folder: Path) -> None:
    """Raises ExportRefused unless `folder` can be made."""
    if os.path.lexists(folder):
        reason, fix = "it exists already", "Name a folder that does not exist yet"
    elif not folder.parent.is_dir():
        reason, fix = f"{folder.parent} is no folder of this host", "Make it first"
    elif not os.access(folder.parent, os.W_OK | os.X_OK):
        reason, fix = f"{folder.parent} cannot be written to", "Name another folder"
    else:
        return
    raise ExportRefused(vm=vm, folder=folder, reason=reason, fix=fix)


def remove_part(part: str) -> None:
    """Remove what was not finished; it may be gone. Raises OSError."""
    if part:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(part)


def sync(folder: Path) -> None:
    """Names in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
