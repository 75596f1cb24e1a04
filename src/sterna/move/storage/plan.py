"""Disks to other pools of one host: what goes where, and what stands in the way. Pure functions.

`plan` translates record and wishes; `check` yields findings from it and from the facts that were
gathered of the files and pools (`Facts`). Nothing is copied while one of them is a blocker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from sterna.model.check import Check, Severity
from sterna.model.disk import Checkpoint, Image, ImageFormat, StateFile, Volume
from sterna.model.host import PoolFacts
from sterna.model.move import DiskWish, StorageWishes
from sterna.model.vm import Disk, VMRecord, VMSpec
from sterna.units import format_size
from sterna.vms import chain

RESERVE = 1.05  # an image in other clusters, with tables of its own, may take so much more


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocation:
    """One disk that goes elsewhere. With `is_whole` it becomes one image that rests on nothing."""

    disk: Disk  # as it is
    there: Disk  # as it will be
    below: tuple[Image, ...] = ()  # the VM's own frozen images, of all branches: copied as files
    base: tuple[Image, ...] = ()  # templates, copied if the pool lacks them
    is_whole: bool

    @property
    def top(self) -> Volume:
        return Volume(pool=self.there.pool, volume=self.there.volume)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A file that is copied as it is."""

    source: Volume
    target: Volume
    disk: str = ""  # whose it is; empty: memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`spec`, `checkpoints` and `saved` as the record will have them."""

    spec: VMSpec
    checkpoints: tuple[Checkpoint, ...]
    saved: StateFile | None
    relocations: tuple[Relocation, ...]
    states: tuple[Transfer, ...]  # memory of checkpoints, saved state
    staying: tuple[str, ...]  # disks that were named and are already there
    unknown: tuple[str, ...]  # disks that were named and are not the VM's

    @property
    def frozen(self) -> tuple[Transfer, ...]:
        """The VM's own files that nobody writes any more."""
        images = (
            Transfer(
                source=Volume(pool=one.disk.pool, volume=image.volume),
                target=Volume(pool=one.there.pool, volume=image.volume),
                disk=one.disk.name,
            )
            for one in self.relocations
            for image in one.below
        )
        return (*images, *self.states)

    @property
    def templates(self) -> tuple[Transfer, ...]:
        """Those that the disks rest on. The pool may have them already."""
        found = [
            Transfer(
                source=Volume(pool=one.disk.pool, volume=image.volume),
                target=Volume(pool=one.there.pool, volume=image.volume),
                disk=one.disk.name,
            )
            for one in self.relocations
            for image in one.base
        ]
        return tuple({(item.source, item.target): item for item in found}.values())

    @property
    def new(self) -> tuple[Volume, ...]:
        """The files that the VM will own and that must not be there yet."""
        return (*(one.top for one in self.relocations), *(item.target for item in self.frozen))

    @property
    def leaving(self) -> tuple[Volume, ...]:
        """The files that it owns now and will not need any more."""
        tops = (Volume(pool=one.disk.pool, volume=one.disk.volume) for one in self.relocations)
        return (*tops, *(item.source for item in self.frozen))


def plan(record: VMRecord, wishes: StorageWishes) -> Plan:
    """What the wishes come to. Contradictions are for `check`."""
    relocations: list[Relocation] = []
    staying: list[str] = []
    for disk in record.spec.disks:
        wish = wishes.disks.get(disk.name)
        if wish is None and not wishes.pool:
            continue
        found = _relocation(record, disk, wish or DiskWish(), wishes)
        if found is None:
            staying += [disk.name] if wish is not None else []
        else:
            relocations.append(found)
    there = {one.disk.name: one.there for one in relocations}
    states: list[Transfer] = []

    def moved(state: StateFile | None) -> StateFile | None:
        if state is None or not wishes.pool or state.pool == wishes.pool:
            return state
        target = Volume(pool=wishes.pool, volume=state.volume)
        states.append(Transfer(source=state.place, target=target))
        return replace(state, pool=wishes.pool)

    return Plan(
        spec=replace(
            record.spec, disks=tuple(there.get(disk.name, disk) for disk in record.spec.disks)
        ),
        checkpoints=tuple(replace(one, memory=moved(one.memory)) for one in record.checkpoints),
        saved=moved(record.saved),
        relocations=tuple(relocations),
        states=tuple(states),
        staying=tuple(staying),
        unknown=tuple(sorted(set(wishes.disks) - {disk.name for disk in record.spec.disks})),
    )


def _relocation(
    record: VMRecord, disk: Disk, wish: DiskWish, wishes: StorageWishes
) -> Relocation | None:
    pool = wish.pool or wishes.pool or disk.pool
    form: ImageFormat = wish.format or disk.format
    below = chain.own_images(record, disk)[1:]
    flattens = wishes.flatten and bool(disk.base)
    if pool == disk.pool and form == disk.format and not flattens:
        return None
    stem = disk.volume.removesuffix(f".{disk.format}")
    volume = disk.volume if form == disk.format else f"{stem}.{form}"
    if pool == disk.pool and volume == disk.volume:
        volume = f"{stem}-flat.{form}"
    base = () if flattens else disk.base
    return Relocation(
        disk=disk,
        there=replace(disk, pool=pool, volume=volume, format=form, base=base),
        below=below,
        base=base,
        is_whole=not below and not base,
    )


# ---- checks ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found of the files and pools, at one moment. Sizes in bytes."""

    host: str
    pools: Mapping[str, PoolFacts]
    sizes: Mapping[Volume, tuple[int, int]]  # of files that are there: length, room it takes
    virtual: Mapping[str, int]  # disk -> bytes that its guest sees
    users: Mapping[Volume, str]  # files that another VM uses too -> its name
    locked: frozenset[Volume]  # images that another program has open
    making: Mapping[Volume, str] = field(default_factory=dict)  # not whole yet -> VM it is for
    bitmaps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # disk -> those it loses
    snapshots: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # within images, lost too
    base_differs: frozenset[Volume] = frozenset()  # templates of that name with another size


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    record: VMRecord
    wishes: StorageWishes
    plan: Plan
    facts: Facts

    @property
    def name(self) -> str:
        return self.record.spec.name


def _blocker(identity: str, finding: str, fix: str) -> Check:
    return Check(id=identity, severity=Severity.BLOCKER, finding=finding, fix=fix)


def disks(q: Question) -> Iterator[Check]:
    for name in q.plan.unknown:
        known = ", ".join(disk.name for disk in q.record.spec.disks) or "none"
        yield _blocker(
            "storage.disk-unknown",
            f"{q.name} has no disk {name}; its disks: {known}",
            f"See them with: sterna vm show {q.name}",
        )
    pools = {disk.name: disk.pool for disk in q.record.spec.disks}
    for name in q.plan.staying:
        yield _blocker(
            "storage.already-there",
            f"disk {name} is in pool {pools[name]} already, as it is wished",
            "Leave it out, or name another pool",
        )
    if not (q.plan.relocations or q.plan.states or q.plan.staying or q.plan.unknown):
        yield _blocker(
            "storage.already-there",
            f"all files of {q.name} are in pool {q.wishes.pool or '-'} already",
            "Name another pool: sterna pool list",
        )


def kinds(q: Question) -> Iterator[Check]:
    for one in q.plan.relocations:
        rests = bool(one.below or one.base)
        if q.wishes.flatten and one.below:
            yield _blocker(
                "storage.flatten-checkpoints",
                f"disk {one.disk.name} has checkpoints, which one flat image cannot hold",
                "Leave --flatten out, or delete its checkpoints first",
            )
        elif one.there.format != one.disk.format and rests:
            yield _blocker(
                "storage.format-frozen",
                f"disk {one.disk.name} rests on other images and stays {one.disk.format}",
                "Leave the format out, or flatten a disk without checkpoints with --flatten",
            )


def snapshots(q: Question) -> Iterator[Check]:
    for disk, names in q.facts.snapshots.items():
        yield _blocker(
            "storage.snapshots-lost",
            f"the image of disk {disk} holds snapshots, which are carried only as it is, and while "
            f"{q.name} is off: {', '.join(names)}",
            "Stop it and move it off, in its format; or, when it is off, delete them: "
            "qemu-img snapshot -d",
        )


def bitmaps(q: Question) -> Iterator[Check]:
    for disk, names in q.facts.bitmaps.items():
        yield Check(
            id="storage.bitmaps-lost",
            severity=Severity.WARNING,
            finding=f"disk {disk} becomes another image and loses its dirty bitmaps: "
            f"{', '.join(names)}",
            fix="Leave it as it is, or let the next backup be a full one",
        )


def pools(q: Question) -> Iterator[Check]:
    wanted = {item.pool: None for item in q.plan.new}
    for name in wanted:
        facts = q.facts.pools.get(name)
        if facts is None:
            yield _blocker(
                "storage.pool-missing",
                f"{q.facts.host} has no pool called {name}",
                f"Make it with: sterna pool create {name} --path DIR",
            )
        elif facts.problem:
            yield _blocker(
                "storage.pool-broken",
                f"pool {name}: {facts.problem}",
                "Mend it, then see: sterna pool list",
            )


def files(q: Question) -> Iterator[Check]:
    for volume in q.plan.leaving:
        if volume not in q.facts.sizes:
            yield _blocker(
                "storage.file-missing",
                f"{volume} is a file of {q.name} and is not there",
                f"Bring it back; see: sterna disk check {q.name}",
            )
    for item in q.plan.templates:
        if item.source not in q.facts.sizes:
            yield _blocker(
                "storage.backing-missing",
                f"disk {item.disk} rests on {item.source}, which is not there",
                f"Bring it back; see: sterna disk check {q.name}",
            )
        elif other := q.facts.making.get(item.target):
            yield _blocker(
                "storage.base-in-the-making",
                f"{item.target}, on which disk {item.disk} is to rest, is just being made for {other}",
                "Try again when that has ended: sterna op list",
            )
        elif item.target in q.facts.base_differs:
            yield _blocker(
                "storage.base-differs",
                f"{item.target} is not the same as {item.source}, on which disk {item.disk} rests",
                "Use --flatten, or another pool",
            )


def names(q: Question) -> Iterator[Check]:
    """Each new file has a name of its own."""
    for volume in q.plan.new:
        if volume in q.facts.sizes:
            yield _blocker(
                "storage.file-exists",
                f"{volume} exists already",
                "Rename or delete that file, or use another pool",
            )
        elif other := q.facts.making.get(volume):
            yield _blocker(
                "storage.file-in-the-making",
                f"{volume} is just being made for {other}",
                "Use another pool, or try again when that has ended: sterna op list",
            )
    places = [*q.plan.new, *(item.target for item in q.plan.templates)]
    twice = [volume for volume in places if places.count(volume) > 1]
    for volume in dict.fromkeys(twice):
        yield _blocker(
            "storage.same-name",
            f"two files of {q.name} would both become {volume}",
            "Send them to different pools",
        )


def use(q: Question) -> Iterator[Check]:
    for volume in q.plan.leaving:
        if other := q.facts.users.get(volume):
            yield _blocker(
                "storage.disk-shared",
                f"{volume} is used by {other} too",
                f"Give each its own disk; see: sterna vm show {other}",
            )
        if volume in q.facts.locked:
            yield _blocker(
                "storage.disk-locked",
                f"{q.name} is off, but another program has {volume} open",
                "End that program; find it with: lsof",
            )


def room(q: Question) -> Iterator[Check]:
    """What is copied must fit, with 5 % for other clusters; what guests may yet write should."""
    takes: dict[str, int] = {}
    grows: dict[str, int] = {}
    for volume, size, most in _needs(q):
        takes[volume.pool] = takes.get(volume.pool, 0) + size
        grows[volume.pool] = grows.get(volume.pool, 0) + max(size, most)
    for pool, size in takes.items():
        facts = q.facts.pools.get(pool)
        if facts is None or facts.problem:
            continue
        needed = int(size * RESERVE)
        if needed > facts.free:
            yield _blocker(
                "storage.no-room",
                f"pool {pool} has {format_size(facts.free)} free; the files of {q.name} take "
                f"{format_size(needed)}",
                "Make room there, or name another pool: sterna pool list",
            )
        elif grows[pool] > facts.free:
            yield Check(
                id="storage.may-fill",
                severity=Severity.WARNING,
                finding=f"pool {pool} has {format_size(facts.free)} free; the disks of {q.name} may "
                f"grow to {format_size(grows[pool])}",
                fix="Watch it: sterna pool list",
            )


def _needs(q: Question) -> Iterator[tuple[Volume, int, int]]:
    """Each new file: its room at first, and at most."""
    for item in q.plan.frozen:
        size = q.facts.sizes.get(item.source, (0, 0))[1]
        yield item.target, size, size
    for item in q.plan.templates:
        if item.target not in q.facts.sizes:
            size = q.facts.sizes.get(item.source, (0, 0))[1]
            yield item.target, size, size
    for one in q.plan.relocations:
        images = [one.disk.volume]
        if one.is_whole:
            images += [image.volume for image in one.disk.base]
        sizes = [
            q.facts.sizes.get(Volume(pool=one.disk.pool, volume=name), (0, 0))[1] for name in images
        ]
        yield one.top, sum(sizes), q.facts.virtual.get(one.disk.name, 0)


CHECKS = (disks, kinds, snapshots, bitmaps, pools, files, names, use, room)


def check(question: Question) -> list[Check]:
    """All findings, blockers first."""
    found = [finding for look in CHECKS for finding in look(question)]
    return sorted(found, key=lambda finding: finding.severity is not Severity.BLOCKER)
