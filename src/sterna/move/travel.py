"""What of a VM's disks travels, where it goes and how: decided once, before anything happens.

A disk travels unless both hosts share its pool and nobody asked for another. Of a disk that
travels, what nobody writes any more goes as files, with hashes (`files`): the images below the top,
the whole disk if the VM is off or the disk read-only, memory of checkpoints and saved state. The top
image of a running VM's disk goes by QEMU's mirror (`mirrors`), because the guest goes on writing.

`plan` is a pure function of the record and the wishes; `measure` looks at the files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from sterna.errors import MoveRefused, SternaError, VolumeMissing
from sterna.host.registry import Pools
from sterna.model.disk import Checkpoint, Image, StateFile, Volume
from sterna.model.host import HostFacts
from sterna.model.move import DiskWish, MoveWishes
from sterna.model.reservation import FileOffer, MirrorOffer
from sterna.model.travel import Medium, Mirroring, Parcel, Travel
from sterna.model.vm import CD, NIC, Disk, VMRecord
from sterna.qemu import image
from sterna.vms import chain


def shared_pools(source: HostFacts, target: HostFacts) -> frozenset[str]:
    """Names of the pools that are proven to be the same storage on both hosts."""
    there = {facts.pool.name: facts.pool for facts in target.pools}
    return frozenset(
        mine.name
        for mine in (facts.pool for facts in source.pools)
        if mine.shared
        and (other := there.get(mine.name)) is not None
        and other.shared
        and other.identity == mine.identity
    )


def plan(
    record: VMRecord,
    wishes: MoveWishes,
    *,
    shared: frozenset[str],
    is_live: bool,
    known: Collection[str] = (),
) -> Travel:
    """What travels; sizes are still zero. `known`: all pools of the target.

    Raises MoveRefused for wishes that contradict the disks.
    """
    planner = _Planner(record, wishes, shared, is_live)
    # First, so that one that is not the same there ends the move before anything else is sent.
    cds = tuple(planner.cd(cd, known) for cd in record.spec.cds)
    disks = tuple(planner.disk(disk) for disk in record.spec.disks)
    checkpoints = tuple(planner.checkpoint(one) for one in record.checkpoints)
    saved = planner.state(record.saved) if record.saved is not None else None
    planner.require_apart(disks)
    return Travel(
        spec=replace(record.spec, disks=disks, cds=cds, nics=planner.nics()),
        checkpoints=checkpoints,
        at=record.at,
        saved=saved,
        files=tuple(planner.files),
        mirrors=tuple(planner.mirrors),
        leaving=tuple(dict.fromkeys(planner.leaving)),
        disks=frozenset(planner.names),
        media=tuple(planner.media),
    )


class _Planner:
    """Collects what travels while it translates one part of the record after the other."""

    def __init__(
        self, record: VMRecord, wishes: MoveWishes, shared: frozenset[str], is_live: bool
    ) -> None:
        unknown = set(wishes.disks) - {disk.name for disk in record.spec.disks}
        if unknown:
            raise self._refused(
                record, wishes, f"it has no disk {', '.join(sorted(unknown))}", "See its disks"
            )
        if unknown := set(wishes.networks) - {nic.name for nic in record.spec.nics}:
            summary = f"it has no NIC {', '.join(sorted(unknown))}"
            raise self._refused(record, wishes, summary, "See its NICs")
        self.record = record
        self.wishes = wishes
        self.shared = shared
        self.is_live = is_live
        self.files: list[Parcel] = []
        self.mirrors: list[Mirroring] = []
        self.leaving: list[Volume] = []
        self.names: list[str] = []
        self.media: list[Medium] = []
        self._went: dict[str, str] = {}  # pool here -> pool there, of disks that travel

    @staticmethod
    def _refused(record: VMRecord, wishes: MoveWishes, summary: str, fix: str) -> MoveRefused:
        vm = record.spec.name
        return MoveRefused(
            vm=vm,
            target=wishes.target,
            summary=summary,
            fix=f"{fix}: sterna vm show {vm}",
            findings=[],
        )

    def nics(self) -> tuple[NIC, ...]:
        """The NICs as the target has them."""
        mapped = self.wishes.networks
        return tuple(
            replace(nic, switch=mapped.get(nic.name, nic.switch)) for nic in self.record.spec.nics
        )

    # ---- CDs -------------------------------------------------------------------------------

    def cd(self, cd: CD, known: Collection[str]) -> CD:
        """The drive as the target has it. A medium goes like a template: others may read it too."""
        if cd.medium is None:
            return cd
        travels = cd.pool not in self.shared
        elsewhere = travels and cd.pool not in known and bool(self.wishes.pool)
        pool = self.wishes.pool if elsewhere else cd.pool
        place = Volume(pool=pool, volume=cd.volume)
        self.media.append(Medium(drive=cd.name, source=cd.medium, place=place, travels=travels))
        if travels:
            self._add(Parcel(source=cd.medium, offer=FileOffer(place=place, size=0, is_base=True)))
        return replace(cd, pool=pool)

    # ---- disks -----------------------------------------------------------------------------

    def disk(self, disk: Disk) -> Disk:
        """The disk as the target has it."""
        wish = self.wishes.disks.get(disk.name, DiskWish())
        pool = wish.pool or (disk.pool if disk.pool in self.shared else self.wishes.pool)
        pool = pool or disk.pool
        if pool == disk.pool and disk.pool in self.shared:
            if wish.format not in (None, disk.format):
                raise self._cannot_convert(disk, "it stays where it is, on a shared pool")
            return disk
        self.names.append(disk.name)
        self._went.setdefault(disk.pool, pool)
        there = self._converted(replace(disk, pool=pool), wish)
        own = chain.own_images(self.record, disk)
        self.leaving += [Volume(pool=disk.pool, volume=one.volume) for one in own]
        self._send(disk, own[1:], pool)
        if not self.wishes.flatten:
            self._send(disk, disk.base, pool, is_base=True)
        if self.is_live and not disk.read_only:
            self.mirrors.append(
                Mirroring(
                    disk=disk,
                    offer=MirrorOffer(disk=disk.name, size=0),
                    is_whole=self.wishes.flatten or not chain.images(self.record, disk)[1:],
                )
            )
        else:
            self._send(disk, own[:1], pool)
        return there

    def _send(
        self, disk: Disk, images: tuple[Image, ...], pool: str, *, is_base: bool = False
    ) -> None:
        for one in images:
            offer = FileOffer(place=Volume(pool=pool, volume=one.volume), size=0, is_base=is_base)
            self._add(Parcel(source=Volume(pool=disk.pool, volume=one.volume), offer=offer))

    def _add(self, parcel: Parcel) -> None:
        if parcel not in self.files:  # a template of several disks, a CD in two drives
            self.files.append(parcel)

    def require_apart(self, disks: tuple[Disk, ...]) -> None:
        """No two files of different pools become one. Raises MoveRefused."""
        there = {disk.name: Volume(pool=disk.pool, volume=disk.volume) for disk in disks}
        ways = [(parcel.source, parcel.offer.place) for parcel in self.files]
        ways += [
            (Volume(pool=one.disk.pool, volume=one.disk.volume), there[one.disk.name])
            for one in self.mirrors
        ]
        sources: dict[Volume, Volume] = {}
        for source, place in ways:
            if (other := sources.setdefault(place, source)) != source:
                raise self._refused(
                    self.record,
                    self.wishes,
                    f"{other} and {source} would both become {place}",
                    "Send their disks to different pools with --disk",
                )

    def _converted(self, there: Disk, wish: DiskWish) -> Disk:
        """With another format, or without what it rests on."""
        flatten = self.wishes.flatten and bool(there.base)
        if self.wishes.flatten and self.record.checkpoints:
            raise self._refused(
                self.record,
                self.wishes,
                f"disk {there.name} has checkpoints, which one flat image cannot hold",
                "Move it without --flatten, or delete its checkpoints first",
            )
        if flatten:
            if not self.is_live:
                raise self._cannot_convert(there, "it is off, and its files go as they are")
            if there.read_only:
                raise self._cannot_convert(there, "it is read-only, and its files go as they are")
            there = replace(there, base=())
        if wish.format in (None, there.format):
            return there
        if not self.is_live:
            raise self._cannot_convert(there, "it is off, and its files go as they are")
        if there.base or self.record.checkpoints or there.read_only:
            raise self._cannot_convert(there, "it rests on other images, or cannot be written to")
        volume = there.volume.removesuffix(f".{there.format}")
        return replace(there, format=wish.format, volume=f"{volume}.{wish.format}")

    def _cannot_convert(self, disk: Disk, reason: str) -> MoveRefused:
        return self._refused(
            self.record,
            self.wishes,
            f"disk {disk.name} cannot become another kind of image: {reason}",
            "Leave --format and --flatten out",
        )

    # ---- memory ----------------------------------------------------------------------------

    def checkpoint(self, one: Checkpoint) -> Checkpoint:
        """The checkpoint as the target has it; its images have gone with their disks."""
        return replace(one, memory=self.state(one.memory) if one.memory is not None else None)

    def state(self, file: StateFile) -> StateFile:
        """A file of memory goes where the disks beside it went."""
        pool = self._went.get(file.pool, "")
        if not pool and file.pool in self.shared:
            return file
        pool = pool or self.wishes.pool or file.pool
        offer = FileOffer(place=Volume(pool=pool, volume=file.volume), size=0)
        parcel = Parcel(source=file.place, offer=offer)
        if parcel not in self.files:  # a VM may go on from the memory of a checkpoint
            self.leaving.append(file.place)
            self.files.append(parcel)
        return replace(file, pool=pool)


async def measure(travel: Travel, record: VMRecord, pools: Pools, host: str) -> Travel:
    """`travel` with the sizes of its files, and who else has them open.

    Raises VolumeMissing, ImageFailed.
    """

    def missing(volume: Volume, path: Path) -> VolumeMissing:
        return VolumeMissing(volume=volume, vm=record.spec.name, path=path, host=host)

    def weigh(parcel: Parcel) -> Parcel:
        path = pools.volume_path(parcel.source.pool, parcel.source.volume)
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise missing(parcel.source, path) from error
        offer = replace(parcel.offer, size=found.st_size, allocated=found.st_blocks * 512)
        return replace(parcel, offer=offer)

    def locked() -> tuple[Volume, ...]:
        if record.process is not None:
            return ()
        own = [one.source for one in travel.files if not one.offer.is_base]
        paths = {place: pools.volume_path(place.pool, place.volume) for place in own}
        return tuple(place for place, path in paths.items() if image.is_in_use(path))

    async def look(mirror: Mirroring) -> Mirroring:
        allocated = 0
        size = 0
        lost: tuple[str, ...] = ()
        snapshots: tuple[str, ...] = ()
        for one in _mirrored(record, mirror):
            place = Volume(pool=mirror.disk.pool, volume=one.volume)
            path = pools.volume_path(place.pool, place.volume)
            if not path.is_file():
                raise missing(place, path)
            found = await image.info(path, one.format)  # never guessed: its guest wrote it
            if one.volume == mirror.disk.volume:
                size, snapshots = found.size, found.snapshots
                lost = found.bitmaps if travel.disk(mirror.disk.name).format == "raw" else ()
            allocated += found.allocated
        offer = replace(mirror.offer, size=size, allocated=allocated)
        return replace(mirror, offer=offer, lost=lost, snapshots=snapshots)

    media = tuple([await _found(one, pools) for one in travel.media])
    gone = {one.source for one in media if one.size is None}  # for a check to say
    there = [one for one in travel.files if one.source not in gone]
    files = await asyncio.to_thread(lambda: tuple(weigh(parcel) for parcel in there))
    mirrors = tuple([await look(mirror) for mirror in travel.mirrors])
    return replace(
        travel,
        files=files,
        mirrors=mirrors,
        media=media,
        locked=await asyncio.to_thread(locked),
    )


async def _found(medium: Medium, pools: Pools) -> Medium:
    """`medium` with its size, if it can be read here."""
    try:
        size, _ = await pools.peek(medium.source.pool, medium.source.volume)
    except (OSError, SternaError):
        return medium
    return replace(medium, size=size)


def _mirrored(record: VMRecord, mirror: Mirroring) -> Iterator[Image]:
    """The images whose content the mirror copies, the top first."""
    images = chain.images(record, mirror.disk)
    yield from images if mirror.is_whole else images[:1]
