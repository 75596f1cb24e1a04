"""Disks and files: their places on the target, room for them, and who else needs them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, INFO, WARNING, Finding, check, here, there
from sterna.model.host import PoolFacts
from sterna.model.travel import Medium
from sterna.model.vm import Disk, VMSpec
from sterna.units import format_size


def _places(q: Question) -> Iterator[tuple[Disk, PoolFacts | None]]:
    """Each disk as the target shall have it, and its pool there."""
    have = {facts.pool.name: facts for facts in q.target.pools}
    for disk in q.travel.spec.disks:
        yield disk, have.get(disk.pool)


def _named(q: Question) -> Iterator[tuple[str, str, PoolFacts | None, str]]:
    """What lies in pools, in words; the name of its pool on the target, and that pool.

    And how to do without it, if that can be.
    """
    have = {facts.pool.name: facts for facts in q.target.pools}
    for disk, pool in _places(q):
        yield f"disk {disk.name}", disk.pool, pool, ""
    for medium in q.travel.media:
        without = f"To do without it: {_eject(q, medium)}. "
        yield _cd(medium), medium.place.pool, have.get(medium.place.pool), without


def _cd(medium: Medium) -> str:
    return f"the CD {medium.source.volume} in drive {medium.drive}"


def _eject(q: Question, medium: Medium) -> str:
    return here(q, f"vm eject {shlex.quote(q.spec.name)} {medium.drive}")


@check("storage.pool-missing", BLOCKER, "The target has the pool of every disk")
def pool_missing(q: Question) -> Iterator[Finding]:
    for what, name, pool, without in _named(q):
        if pool is not None:
            continue
        mine = next((one.pool for one in q.source.pools if one.pool.name == name), None)
        is_joined = name in q.joinable
        shared = " --shared" if is_joined else ""
        path = shlex.quote(mine.path) if mine is not None else "DIR"
        make = f"pool create {name} --path {path}{shared}"
        fix = (
            "Its storage is there; join it" if is_joined else "Name another with --pool, or make it"
        )
        fix = without + fix
        yield Finding(
            f"{what} is to be in pool {name}, which {q.target.name} lacks",
            fix if mine is not None else f"{fix}: {there(q, make)}",
            there(q, make) if mine is not None else "",
            is_safe=is_joined,  # nothing is made but the name
        )


@check("storage.pool-broken", BLOCKER, "The target's pools of its disks can be used")
def pool_broken(q: Question) -> Iterator[Finding]:
    for _, name, pool, _ in _named(q):
        if pool is not None and pool.problem:
            yield Finding(
                f"pool {name} of {q.target.name}: {pool.problem}",
                "Mend it, then see",
                there(q, "pool list"),
            )


@check("storage.cd-missing", BLOCKER, "The CDs in its drives can be read")
def cd_missing(q: Question) -> Iterator[Finding]:
    for medium in q.travel.media:
        if medium.size is None:
            yield Finding(
                f"{_cd(medium)} cannot be read from pool {medium.source.pool} of {q.source.name} "
                f"any more",
                "Put it back, or take it out of the drive",
                _eject(q, medium),
            )


@check("storage.cd-image", INFO, "The target has the CDs in its drives")
def cd_image(q: Question) -> Iterator[Finding]:
    have = {facts.pool.name: facts.pool for facts in q.target.pools}
    for medium in q.travel.media:
        pool = have.get(medium.place.pool)
        if medium.size is None or not medium.travels or pool is None:
            continue
        if str(Path(pool.path) / medium.place.volume) not in q.files:
            yield Finding(
                f"{_cd(medium)} ({format_size(medium.size)}) is not on {q.target.name}: it is "
                f"carried there",
                "To do without",
                _eject(q, medium),
            )


@check(
    "storage.not-the-same",
    WARNING,
    "A pool that both hosts declare shared is the same storage on both",
)
def not_the_same(q: Question) -> Iterator[Finding]:
    here_ = {facts.pool.name: facts.pool for facts in q.source.pools}
    for disk, pool in _places(q):
        mine = here_.get(disk.pool)
        if disk.name not in q.travel.disks or mine is None or pool is None or pool.problem:
            continue
        if not (mine.shared and pool.pool.shared):
            continue
        fix = "Mount the same storage on both hosts, or name another pool with --pool"
        if mine.identity != pool.pool.identity:
            yield Finding(
                f"pool {disk.pool} is declared shared, but is not the same storage on "
                f"{q.source.name} ({mine.identity}) and {q.target.name} ({pool.pool.identity}): "
                f"{disk.name} is copied there",
                fix,
            )
        elif _is_apart(q, disk.pool):
            yield Finding(
                f"pool {disk.pool} is a copy and not the same storage on {q.source.name} "
                f"({mine.path}) and {q.target.name} ({pool.pool.path}): they have the same "
                f"identity, but what is written on one is not seen on the other; {disk.name} is "
                f"copied there",
                fix,
            )


def _is_apart(q: Question, pool: str) -> bool:
    proof = q.proofs.get(pool)
    return proof is not None and proof.is_same is False


@check("storage.not-proven", WARNING, "Shared storage could be proven to be the same on both hosts")
def not_proven(q: Question) -> Iterator[Finding]:
    for pool, proof in q.proofs.items():
        if proof.is_same is None:
            yield Finding(
                f"nothing can be written to pool {pool} of {q.source.name} ({proof.reason}), so "
                f"that it is the same storage on {q.target.name} is believed for its identity",
                "Look at the storage",
                here(q, "pool list"),
            )


@check("storage.boot-missing", WARNING, "The target has the kernel that the VM boots")
def boot_missing(q: Question) -> Iterator[Finding]:
    for path in boot_files(q.spec):
        if path not in q.files:
            yield Finding(
                f"{q.spec.name} boots {path}, which {q.target.name} lacks: it could not start "
                f"there again",
                f"Bring that file to {q.target.name}",
            )


def boot_files(spec: VMSpec) -> tuple[str, ...]:
    """Files of a host that the VM needs when it starts."""
    boot = spec.boot
    return tuple(path for path in (boot.kernel, boot.initrd) if path) if boot else ()


@check("storage.disk-shared", BLOCKER, "No other VM uses a file that leaves")
def disk_shared(q: Question) -> Iterator[Finding]:
    for volume in q.travel.leaving:
        if other := q.users.get(volume):
            yield Finding(
                f"{volume} is used by {other} too",
                "Give each its own disk; see",
                here(q, f"vm show {other}"),
            )


@check("storage.disk-locked", BLOCKER, "No other program has a file of a VM that is off open")
def disk_locked(q: Question) -> Iterator[Finding]:
    for volume in q.travel.locked:
        yield Finding(
            f"{q.spec.name} is off, but another program has {volume} open",
            "End that program; find it with: lsof",
        )


@check(
    "storage.snapshots-lost",
    BLOCKER,
    "No image that is mirrored holds snapshots of other programs, which a mirror does not carry",
)
def snapshots_lost(q: Question) -> Iterator[Finding]:
    for mirror in q.travel.mirrors:
        if mirror.snapshots:
            yield Finding(
                f"the image of disk {mirror.disk.name} holds snapshots, which only a move of a VM "
                f"that is off carries: {', '.join(mirror.snapshots)}",
                "Stop it and move it off; or, when it is off, delete them: qemu-img snapshot -d",
            )


@check("storage.bitmaps-lost", WARNING, "Dirty bitmaps of backups are kept")
def bitmaps_lost(q: Question) -> Iterator[Finding]:
    for mirror in q.travel.mirrors:
        if mirror.lost:
            yield Finding(
                f"disk {mirror.disk.name} becomes raw and loses its dirty bitmaps: "
                f"{', '.join(mirror.lost)}",
                "Leave it qcow2, or let the next backup be a full one",
            )


def _rooms(q: Question) -> Iterator[tuple[str, int, PoolFacts]]:
    """Pools that can be used, with the bytes that must be free there."""
    have = {facts.pool.name: facts for facts in q.target.pools}
    for pool, needed in q.travel.needs().items():
        facts = have.get(pool)
        if facts is not None and not facts.problem:
            yield pool, needed, facts


@check("storage.no-room", BLOCKER, "What travels fits into the target's pools")
def no_room(q: Question) -> Iterator[Finding]:
    for pool, needed, facts in _rooms(q):
        if needed > facts.free:
            yield Finding(
                f"{q.spec.name} needs {format_size(needed)} in pool {pool} of {q.target.name}, "
                f"which has {format_size(facts.free)} free",
                "Make room there, or name another pool with --pool",
            )


@check("storage.may-fill-up", WARNING, "Disks that have grown to their full size would fit, too")
def may_fill_up(q: Question) -> Iterator[Finding]:
    for pool, needed, facts in _rooms(q):
        whole = q.travel.grown(pool)
        if needed <= facts.free < whole:
            yield Finding(
                f"pool {pool} of {q.target.name} has {format_size(facts.free)} free; the disks of "
                f"{q.spec.name} may grow to {format_size(whole)}",
                "Make room there before they do",
            )
