"""The images that the disks of a new VM are made of or rest on: read, and refused if they will not do.

Promises: nothing is changed. Every image of a chain is a plain file of the disk's own pool, of a
known format, and nobody writes to a template. A header that names a file anywhere else is never
followed: its owner could read any file of the host through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sterna.errors import ImageMissing, VolumeRefused
from sterna.host.registry import Pools
from sterna.model.disk import Image, ImageFormat, Volume
from sterna.model.vm import Disk, VMRecord, VMSpec
from sterna.qemu import image
from sterna.units import format_size
from sterna.vms import chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What other VMs of this host do with a file."""

    vm: str
    is_own: bool  # it writes to it, or it froze it; else it only reads it
    is_medium: bool = False  # as a CD; else as a template that its disks rest on
    leaves: str = ""  # it is about to be deleted, and why: nothing may be built on it

    @property
    def words(self) -> str:
        """Why no other may write to it."""
        if self.is_medium:
            return f"it is in a CD drive of {self.vm}"
        how = "is in use by" if self.is_own else "is a template that disks rest on, of"
        return f"it {how} {self.vm}"


def uses(records: Iterable[VMRecord]) -> dict[Volume, Use]:
    """All files that these VMs use. A file of their own counts before a template."""
    found: dict[Volume, Use] = {}
    for record in records:
        own = (*chain.own_files(record), *record.made, *record.departing, *record.leaving)
        found |= dict.fromkeys(own, Use(vm=record.spec.name, is_own=True))
        for disk in record.spec.disks:
            for base in disk.base:
                place = Volume(pool=disk.pool, volume=base.volume)
                found.setdefault(place, Use(vm=record.spec.name, is_own=False))
        for place in chain.media(record.spec):
            found.setdefault(place, Use(vm=record.spec.name, is_own=False, is_medium=True))
    return found


async def resolve(spec: VMSpec, pools: Pools, host: str) -> VMSpec:
    """`spec` with the chains of its disks filled in, and the sizes of new ones on a template.

    Raises VolumeRefused, ImageMissing, ImageFailed.
    """
    disks = [await _Chain(spec.name, disk, pools, host).resolved() for disk in spec.disks]
    return replace(spec, disks=tuple(disks))


def require_unused(spec: VMSpec, used: Mapping[Volume, Use], pools: Pools) -> None:
    """No other disk may use what these disks write; a template may be shared. Raises VolumeRefused."""
    mine: dict[Volume, str] = {}
    for disk in spec.disks:
        top = Volume(pool=disk.pool, volume=disk.volume)

        def refused(place: Volume, reason: str, fix: str, disk: Disk = disk) -> VolumeRefused:
            path = pools.volume_path(place.pool, place.volume)
            return VolumeRefused(path=path, disk=disk.name, vm=spec.name, reason=reason, fix=fix)

        if top in mine:
            raise refused(top, f"disk {mine[top]} is in it already", "Give each disk its own")
        mine[top] = disk.name
        if (use := used.get(top)) is not None:
            if use.leaves:
                raise refused(top, use.leaves, "Use a copy of it: image=PATH")
            raise refused(top, use.words, "Use it as a template: base=, or as a copy: image=PATH")
    for disk in spec.disks:
        for below in disk.base:
            place = Volume(pool=disk.pool, volume=below.volume)
            other = used.get(place)
            if other is not None and other.leaves:
                raise refused(place, other.leaves, "Make a template of a copy of it", disk)
            if place in mine or (other is not None and other.is_own):
                name = spec.name if place in mine or other is None else other.vm
                path = pools.volume_path(place.pool, place.volume)
                raise VolumeRefused(
                    path=path,
                    disk=disk.name,
                    vm=spec.name,
                    reason=f"it is a disk of {name}, which may write to it",
                    fix="Make a template of a copy: qemu-img convert -O qcow2 "
                    f"{path} {path.with_name('template.qcow2')}",
                )


class _Chain:
    """One disk of a VM that is to be made."""

    def __init__(self, vm: str, disk: Disk, pools: Pools, host: str) -> None:
        self._vm = vm
        self._disk = disk
        self._pools = pools
        self._host = host

    async def resolved(self) -> Disk:
        disk = self._disk
        if disk.image:
            self._no_base("a copy of an image stands alone", "Give either base or image")
            return disk
        top = self._path(disk.volume)
        exists = await asyncio.to_thread(top.exists)
        if disk.size or (disk.base and not exists):
            return await self._on_template() if disk.base else disk
        if not exists:
            raise ImageMissing(what=f"disk {disk.name}", path=top, host=self._host)
        if top.is_symlink():  # by two names it could be a disk of two VMs
            raise self._refused(
                top, f"it is a link to {top.readlink()}", "Name the file itself: volume="
            )
        return await self._existing(top)

    async def _on_template(self) -> Disk:
        """A new image over the first of `base`."""
        disk = self._disk
        if disk.format != "qcow2":
            self._no_base("a raw disk cannot rest on a template", "Leave format=raw out")
        path = self._path(disk.base[0].volume)
        if not await asyncio.to_thread(path.is_file):
            raise ImageMissing(what="template", path=path, host=self._host)
        found = await image.info(path)
        form = "raw" if disk.base[0].format == "raw" else found.format
        base = await self._below(disk.base[0].volume, form)
        if disk.size is not None and disk.size < found.size:
            raise self._refused(
                path,
                f"it holds {format_size(found.size)}, more than the {format_size(disk.size)} wanted",
                f"Give size={found.size} or more, or leave it out",
            )
        return replace(disk, base=base, size=disk.size or found.size)

    async def _existing(self, top: Path) -> Disk:
        """A volume that is there: nobody else has it open; its header says what it rests on."""
        disk = self._disk
        if await asyncio.to_thread(image.is_in_use, top):
            raise self._refused(
                top, "another program has it open", f"End that program; find it with: lsof {top}"
            )
        found = await self._read(top, disk.format)
        base: tuple[Image, ...] = ()
        if found.backing:
            base = await self._below(self._plain(top, found.backing), found.backing_format)
        if disk.base and disk.base[0].volume != (base[0].volume if base else ""):
            below = f"on {base[0].volume}" if base else "on nothing"
            raise self._refused(
                top,
                f"it rests {below}, not on {disk.base[0].volume}",
                "Leave base out: what a volume rests on is read from it",
            )
        return replace(disk, base=base)

    async def _below(self, volume: str, image_format: str) -> tuple[Image, ...]:
        """The template `volume` and all that it rests on, the top first."""
        chained: list[Image] = []
        while volume:
            path = self._path(volume)
            if volume in (self._disk.volume, *(one.volume for one in chained)):
                raise self._refused(
                    path, "what it rests on leads back to it", "Mend it with: qemu-img rebase -u"
                )
            if not await asyncio.to_thread(path.is_file):
                raise self._refused(
                    path,
                    "the disk rests on it, and it does not exist",
                    f"Put it there, into pool {self._disk.pool}",
                )
            form = self._format(path, image_format)
            found = await self._read(path, form)
            if await asyncio.to_thread(image.is_written, path):
                raise self._refused(
                    path,
                    "another program writes to it, which would spoil all that rests on it",
                    f"End that program; find it with: lsof {path}",
                )
            chained.append(Image(volume=volume, format=form))
            volume = self._plain(path, found.backing) if found.backing else ""
            image_format = found.backing_format
        return tuple(chained)

    async def _read(self, path: Path, form: ImageFormat) -> image.ImageInfo:
        if form == "qcow2":
            probed = await image.info(path)
            if probed.format != "qcow2":
                fix = f"Give format={probed.format}" if probed.format == "raw" else _convert(path)
                raise self._refused(path, f"it is {probed.format}, not qcow2", fix)
        found = await image.info(path, form)
        if found.data_file:
            reason = f"its data are in another file, {found.data_file}"
            raise self._refused(path, reason, _convert(path))
        return found

    def _format(self, path: Path, image_format: str) -> ImageFormat:
        if image_format == "qcow2":
            return "qcow2"
        if image_format == "raw":
            return "raw"
        if not image_format:
            raise self._refused(
                path,
                "what rests on it does not say which format it has",
                f"Say it: qemu-img rebase -u -F FORMAT -b {path.name} OVERLAY",
            )
        raise self._refused(path, f"it is {image_format}, not qcow2 or raw", _convert(path))

    def _plain(self, path: Path, backing: str) -> str:
        """The file name in the pool that a header means. Raises VolumeRefused if it is elsewhere."""
        there = Path(backing.removeprefix("file:"))
        if str(there.parent) not in (".", str(path.parent)) or there.name.startswith("."):
            raise self._refused(
                path,
                f"it rests on {backing}, which is not in pool {self._disk.pool}",
                f"Bring that file into {path.parent}, then: qemu-img rebase -u -F FORMAT "
                f"-b {there.name} {path}; or use a copy that stands alone with image=",
            )
        return there.name

    def _path(self, volume: str) -> Path:
        return self._pools.volume_path(self._disk.pool, volume)

    def _no_base(self, reason: str, fix: str) -> None:
        if self._disk.base:
            raise self._refused(self._path(self._disk.base[0].volume), reason, fix)

    def _refused(self, path: Path, reason: str, fix: str) -> VolumeRefused:
        return VolumeRefused(path=path, disk=self._disk.name, vm=self._vm, reason=reason, fix=fix)


def _convert(path: Path) -> str:
    return f"Make one that stands alone with: qemu-img convert -O qcow2 {path} NEW.qcow2"
