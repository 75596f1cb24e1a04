"""Whether the disks of a running VM are mirrored as they are, or sown: frozen and sent as files.

The mirror is the simple way. Sown disks (`sterna.checkpoint.seed`) cost an image on top of each and
a merge afterwards; for that they go compressed, and a try that failed is gone on with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from sterna.errors import MoveRefused
from sterna.model.move import MoveWishes
from sterna.model.travel import Travel
from sterna.operations.runner import Job
from sterna.units import GIB, format_size
from sterna.vms.machine import VM

SEED_FROM = 16 * GIB  # minutes on ordinary links: worth more than the merge afterwards costs
ROOM = GIB  # at least, for what a guest writes while its disks are frozen


class Seeds(Protocol):
    """What freezes disks, and makes them whole again."""

    async def sow(self, vm: VM, job: Job) -> None: ...
    def make_whole(self, vm: VM) -> None: ...


def choose(
    travel: Travel,
    wishes: MoveWishes,
    bitmaps: Collection[str],
    free: Mapping[str, int],
    *,
    is_live: bool = True,
) -> tuple[bool, str]:
    """Whether to sow, and why. `bitmaps`: disks that have dirty bitmaps; `free`: bytes in the pools
    of the source. Raises MoveRefused if it was asked for and cannot be.
    """
    off = "" if is_live else "it is off, and they go as files in any case"
    obstacle = off or _obstacle(travel, wishes, bitmaps, free)
    if wishes.disk_copy == "seed":
        if not obstacle:
            return True, "it was asked for"
        raise MoveRefused(
            vm=travel.spec.name,
            target=wishes.target,
            summary=f"its disks cannot be frozen for the move: {obstacle}",
            fix="Leave --disk-copy out" if off else "Move it with --disk-copy mirror",
            findings=[],
        )
    if wishes.disk_copy == "mirror":
        return False, "it was asked for"
    if obstacle:
        return False, obstacle
    held = sum(mirror.offer.allocated for mirror in travel.mirrors)
    told = f"{format_size(held)} would have to be copied anew after an interruption"
    return held >= SEED_FROM, told if held >= SEED_FROM else f"no more than {told}"


def _obstacle(
    travel: Travel, wishes: MoveWishes, bitmaps: Collection[str], free: Mapping[str, int]
) -> str:
    """Why the disks cannot be frozen; empty: they can."""
    if not travel.mirrors:
        return "no disk of it that its guest writes has to travel"
    if wishes.flatten:
        return "--flatten makes one image of each"
    held: dict[str, int] = {}
    for mirror in travel.mirrors:
        disk = mirror.disk
        if disk.name in bitmaps:
            return f"disk {disk.name} has dirty bitmaps, which only a mirror can carry"
        if travel.disk(disk.name).format != disk.format:
            return f"disk {disk.name} becomes another kind of image"
        held[disk.pool] = held.get(disk.pool, 0) + mirror.offer.allocated
    for pool, size in held.items():
        room = max(ROOM, size // 10)
        if free.get(pool, 0) < room:
            return (
                f"pool {pool} has {format_size(free.get(pool, 0))} free here, and what the guest "
                f"writes meanwhile may take {format_size(room)}"
            )
    return ""
