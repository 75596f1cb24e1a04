"""The images of VMs held against their records: what is missing, changed or damaged, and the fix.

Promises to change nothing, and to be quick enough to be asked often: headers and tables are read,
contents only where `is_deep` asks for it. The first broken link of a chain comes first, for what
rests on it cannot be well. The record is the truth: QEMU is told by it which image rests on which.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sterna import clock
from sterna.errors import SternaError
from sterna.model.check import Check, Severity
from sterna.model.disk import Image, StateFile, Volume
from sterna.model.vm import Disk, VMRecord
from sterna.qemu import image
from sterna.qemu.image import ImageInfo
from sterna.units import format_size
from sterna.vms import chain, saved
from sterna.vms.launch import Launcher
from sterna.vms.witnessed import Sight, Witnessed

AGAIN = "bring it back from a copy: sterna disk kept, or a backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Check):
    """One finding, and where: a VM and its disk, or a pool."""

    vm: str = ""
    disk: str = ""
    place: str = ""  # POOL/FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One image as the record has it: what it must rest on, and who has frozen it."""

    image: Image
    below: Image | None
    frozen_by: str  # id of a checkpoint; `TOP` or `TEMPLATE` otherwise


TOP, TEMPLATE = "", "template"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found of one file. Without `info` it could not be read, as `problem` says."""

    is_there: bool
    info: ImageInfo | None = None
    problem: str = ""
    is_written: bool = False
    sight: Sight | None = None
    before: Sight | None = None  # when it was first seen frozen
    damage: tuple[int, int] | None = None  # errors, leaked clusters; None: not looked for


def links(record: VMRecord, disk: Disk) -> Iterator[Link]:
    """Every image of a disk once: the line that it is on now, the top first, then other branches."""

    def below(parent: str) -> Image | None:
        frozen = (
            one.images[disk.name] for one in chain.line(record, parent) if disk.name in one.images
        )
        return next(frozen, disk.base[0] if disk.base else None)

    top = Image(volume=disk.volume, format=disk.format)
    yield Link(image=top, below=below(record.at), frozen_by=TOP)
    now = [one.id for one in chain.line(record, record.at)]
    others = [one.id for one in record.checkpoints if one.id not in now]
    points = {one.id: one for one in record.checkpoints}
    for key in (*now, *reversed(others)):
        if frozen := points[key].images.get(disk.name):
            yield Link(image=frozen, below=below(points[key].parent), frozen_by=key)
    for depth, base in enumerate(disk.base):
        rest = disk.base[depth + 1 :]
        yield Link(image=base, below=rest[0] if rest else None, frozen_by=TEMPLATE)


def since(record: VMRecord, link: Link) -> str:
    """What froze an image here: its notes begin anew when it comes to a host, or to another VM."""
    return f"{link.frozen_by} of {record.spec.id} in epoch {record.ownership.epoch}"


def is_endless(record: VMRecord) -> bool:
    """Whether its checkpoints lead back to themselves, or to one that is not there."""
    parents = {one.id: one.parent for one in record.checkpoints}
    for start in (record.at, *parents):
        met: set[str] = set()
        now = start
        while now:
            if now in met or now not in parents:
                return True
            met.add(now)
            now = parents[now]
    return False


# ---- judging: pure ---------------------------------------------------------------------------


def judge(link: Link, disk: Disk, path: Path, seen: Mapping[str, Seen]) -> Iterator[Check]:
    """What is wrong with one image; `seen` by file name, of all images of its chain."""
    one = seen[link.image.volume]
    what = "template" if link.frozen_by == TEMPLATE else "image"
    if not one.is_there:
        yield _blocker(
            f"disk.{what}-missing", f"{what} {path} is not there", f"Put it there, or {AGAIN}"
        )
        return
    if one.info is None:
        identity = (
            "disk.wrong-format" if "not in qcow2 format" in one.problem else "disk.unreadable"
        )
        finding = f"{what} {path} cannot be read as {link.image.format}: {one.problem}"
        yield _blocker(identity, finding, f"Another file may have taken its place; {AGAIN}")
        return
    yield from _rests(link, path, one.info, seen)
    yield from _sizes(link, disk, path, one.info, seen)
    yield from _changes(link, path, one)
    yield from _damage(path, one)


def _rests(link: Link, path: Path, info: ImageInfo, seen: Mapping[str, Seen]) -> Iterator[Check]:
    wanted = link.below.volume if link.below else ""
    if plain_name(info.backing, path) == wanted:
        return
    if _leads_back(link.image.volume, path, seen):
        yield _blocker(
            "disk.loop",
            f"{path} rests on {info.backing}, which rests on {path.name} again",
            _rebase(path, link.below),
        )
        return
    yield _blocker(
        "disk.wrong-parent",
        f"{path} says that it rests on {info.backing or 'nothing'}; its record says "
        f"{wanted or 'nothing'}",
        f"If nobody put another file there on purpose: {_rebase(path, link.below)}; else {AGAIN}",
    )


def _leads_back(volume: str, path: Path, seen: Mapping[str, Seen]) -> bool:
    met, now = set[str](), volume
    while now not in met:
        met.add(now)
        info = seen[now].info if now in seen else None
        if info is None or not info.backing:
            return False
        now = plain_name(info.backing, path)
    return True


def plain_name(backing: str, path: Path) -> str:
    """The name in the pool of the file that a header means; as it is if it is elsewhere."""
    there = Path(backing)
    return there.name if backing and there.parent in (Path(), path.parent) else backing


def _rebase(path: Path, below: Image | None) -> str:
    on = f"-b {below.volume} -F {below.format}" if below else "-b ''"
    return f"With the VM off: qemu-img rebase -u -f qcow2 {on} {path}"


def _sizes(
    link: Link, disk: Disk, path: Path, info: ImageInfo, seen: Mapping[str, Seen]
) -> Iterator[Check]:
    below = seen[link.below.volume].info if link.below and link.below.volume in seen else None
    if below is not None and info.size < below.size:
        yield _blocker(
            "disk.wrong-size",
            f"{path} shows {format_size(info.size)}, less than the {format_size(below.size)} of "
            f"{link.below.volume if link.below else ''}, on which it rests",
            f"One of them was resized or is another file; {AGAIN}",
        )
    elif link.frozen_by == TOP and disk.size is not None and info.size != disk.size:
        smaller = info.size < disk.size
        yield Check(
            id="disk.wrong-size",
            severity=Severity.BLOCKER if smaller else Severity.WARNING,
            finding=f"{path} shows {format_size(info.size)}; its record says {format_size(disk.size)}",
            fix=f"It was cut or is another file; {AGAIN}" if smaller else "It was resized by hand",
        )


def _changes(link: Link, path: Path, one: Seen) -> Iterator[Check]:
    """Nobody writes to what is frozen."""
    if link.frozen_by == TOP:
        return
    if one.is_written:
        yield Check(
            id="disk.parent-written",
            severity=Severity.BLOCKER,
            finding=f"a program may write to {path}, on which other images rest",
            fix=f"End that program; find it with: lsof {path}",
        )
    elif one.before is not None and one.before != one.sight:
        yield Check(
            id="disk.parent-changed",
            severity=Severity.WARNING,
            finding=f"{path} was possibly changed after other images came to rest on it: size or time "
            f"of change are not what they were when it was first seen so",
            fix=f"If anything was written to it, what rests on it is spoilt: {AGAIN}. If not, say "
            f"so: sterna disk check --trust",
        )


def _damage(path: Path, one: Seen) -> Iterator[Check]:
    errors, leaks = one.damage or (0, 0)
    if errors or (one.info and one.info.is_marked_corrupt):
        count = f"{errors} errors" if errors else "marked by QEMU"
        yield _blocker(
            "disk.corrupt",
            f"{path} is damaged ({count})",
            f"Copy it, then mend the copy: qemu-img check -r all COPY; or {AGAIN}",
        )
    elif leaks:
        yield Check(
            id="disk.leaks",
            severity=Severity.INFO,
            finding=f"{path} holds {leaks} clusters for nothing, as after a power cut; no data suffer",
            fix=f"With the VM off: qemu-img check -r leaks {path}",
        )


def _blocker(identity: str, finding: str, fix: str) -> Check:
    return Check(id=identity, severity=Severity.BLOCKER, finding=finding, fix=fix)


# ---- looking ---------------------------------------------------------------------------------


class Inspector:
    """Looks at the files of one VM. `tables_s`: as long as its tables may be read, at most."""

    def __init__(
        self,
        record: VMRecord,
        launcher: Launcher,
        witnessed: Witnessed,
        *,
        is_deep: bool = False,
        tables_s: float | None = None,
    ) -> None:
        self._record = record
        self._launcher = launcher
        self._pools = launcher.pools
        self._witnessed = witnessed
        self._is_deep = is_deep
        self._until = None if tables_s is None else clock.monotonic() + tables_s
        self.images = 0

    async def run(self) -> list[Found]:
        """All findings, in the order of the chains."""
        record = self._record
        name = record.spec.name
        if is_endless(record):
            checks = [_blocker("disk.loop", f"the checkpoints of {name} lead back to themselves",
                               "Mend its record in STATE/vms with sternad stopped")]  # fmt: skip
            return [_found(check, name) for check in checks]
        found: list[Found] = []
        for disk in record.spec.disks:
            found += await self._disk(disk)
        for what, state, fix in self._states():
            place = str(state.place)
            found += [
                _found(check, name, place=place) async for check in self._state(what, state, fix)
            ]
        return found

    async def _disk(self, disk: Disk) -> list[Found]:
        name = self._record.spec.name
        facts = await self._pool_problem(disk.pool)
        if facts:
            check = _blocker("disk.pool-broken", facts, "Mend it, then see: sterna pool list")
            return [_found(check, name, disk.name, f"{disk.pool}/")]
        every = list(links(self._record, disk))
        seen = {link.image.volume: await self._look(disk, link) for link in every}
        found: list[Found] = []
        for link in every:
            self.images += 1
            path, _ = self._path(disk, link)
            place = f"{disk.pool}/{link.image.volume}"
            checks = list(judge(link, disk, path, seen))
            if not checks and _is_whole(link, every, path, seen):
                checks = list(_damage(path, await self._checked(path, link, seen)))
            found += [_found(check, name, disk.name, place) for check in checks]
        return found

    async def _pool_problem(self, pool: str) -> str:
        try:
            facts = await self._pools.facts_of(pool)
        except SternaError as error:
            return error.message
        return f"pool {pool}: {facts.problem}" if facts.problem else ""

    def _path(self, disk: Disk, link: Link) -> tuple[Path, str]:
        """Where the image is, and why it must not be opened."""
        try:
            return self._pools.volume_path(disk.pool, link.image.volume), ""
        except SternaError as error:
            return Path(self._pools.get(disk.pool).path) / link.image.volume, error.message

    async def _look(self, disk: Disk, link: Link) -> Seen:
        path, problem = self._path(disk, link)
        if problem:
            return Seen(is_there=True, problem=problem)
        if not await asyncio.to_thread(path.is_file):
            return Seen(is_there=False)
        is_written = False
        with contextlib.suppress(OSError):
            is_written = await asyncio.to_thread(image.is_written, path)
        sight, before = None, None
        if link.frozen_by != TOP:
            place = Volume(pool=disk.pool, volume=link.image.volume)
            try:
                sight = await asyncio.to_thread(Sight.of, path)
            except OSError:  # in this very moment
                return Seen(is_there=False)
            before = self._witnessed.first(place, since(self._record, link), sight)
        try:
            info = await image.info(path, link.image.format)
        except SternaError as error:
            problem = str(error.facts.get("reason", error.message))
            return Seen(is_there=True, problem=problem, is_written=is_written)
        return Seen(is_there=True, info=info, is_written=is_written, sight=sight, before=before)

    async def _checked(self, path: Path, link: Link, seen: Mapping[str, Seen]) -> Seen:
        """With what `qemu-img check` says, unless somebody writes to it just now."""
        one = seen[link.image.volume]
        if link.image.format != "qcow2" or one.is_written:
            return one
        try:
            async with asyncio.timeout(self._until and max(0, self._until - clock.monotonic())):
                found = await image.damage(path)
        except TimeoutError:  # too large to be read in passing
            return one
        except SternaError:
            found = (1, 0)
        if any(found) and await asyncio.to_thread(_is_written, path):
            return one  # its VM was started meanwhile
        return Seen(is_there=True, info=one.info, damage=found)

    # ---- memory ------------------------------------------------------------------------------

    def _states(self) -> Iterator[tuple[str, StateFile, str]]:
        name = self._record.spec.name
        if self._record.saved is not None:
            fix = f"Throw it away, then {name} boots: sterna vm discard {name}"
            yield "the saved state", self._record.saved, fix
        for one in self._record.checkpoints:
            if one.memory is not None:
                fix = f"Its disks are not touched: sterna vm checkpoint apply {name} {one.name} --no-memory"
                yield f"the memory of checkpoint {one.name}", one.memory, fix

    async def _state(self, what: str, state: StateFile, fix: str) -> AsyncIterator[Check]:
        path: Path | str = str(state.place)
        reason = ""
        try:
            path = self._pools.volume_path(state.pool, state.volume)
            size = (await asyncio.to_thread(path.stat)).st_size
            if size != state.size:
                reason = f"it has {size} bytes instead of {state.size}"
        except FileNotFoundError:
            reason = "it is not there"
        except OSError as error:
            reason = error.strerror or str(error)
        except SternaError as error:
            reason = error.message
        if not reason and self._is_deep:
            path, reason = await saved.damage(state, self._launcher)
        if reason:
            yield _blocker("disk.state-damaged", f"{what} is damaged: {path}: {reason}", fix)


def _is_written(path: Path) -> bool:
    try:
        return image.is_written(path)
    except OSError:
        return True


def _is_whole(link: Link, every: list[Link], path: Path, seen: Mapping[str, Seen]) -> bool:
    """Whether it and all below name in their headers what they rest on: qemu-img follows these."""
    at: Link | None = link
    by_name = {one.image.volume: one for one in every}
    while at is not None:
        info = seen[at.image.volume].info
        wanted = at.below.volume if at.below else ""
        if info is None or plain_name(info.backing, path) != wanted:
            return False
        at = by_name.get(wanted)
    return True


def _found(check: Check, vm: str = "", disk: str = "", place: str = "") -> Found:
    return Found(
        id=check.id,
        severity=check.severity,
        finding=check.finding,
        fix=check.fix,
        vm=vm,
        disk=disk,
        place=place,
    )
