"""What must be known of files and pools before disks move within a host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from sterna.errors import SternaError
from sterna.host.registry import Pools
from sterna.model.disk import Volume, node_name
from sterna.model.vm import VMRecord
from sterna.move.storage.plan import Facts, Plan
from sterna.qemu import image
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.service import VMs


async def gather(vm: VM, vms: VMs, plan: Plan) -> Facts:
    """Look at everything that `plan` touches. What cannot be looked at is left out, as if absent."""
    known = vms.launcher.pools
    record = vm.record
    sources = {item.source for item in plan.templates} | set(plan.leaving)
    sources |= {
        Volume(pool=one.disk.pool, volume=image.volume)
        for one in plan.relocations
        for image in chain.images(record, one.disk)
    }
    targets = {*plan.new, *(item.target for item in plan.templates)}
    pools = {facts.pool.name: facts for facts in await known.facts()}
    usable = {name for name, facts in pools.items() if not facts.problem}
    sizes = await asyncio.to_thread(
        _sizes, known, [one for one in sources | targets if one.pool in usable]
    )
    locked: frozenset[Volume] = frozenset()
    if vm.process is None:
        locked = await asyncio.to_thread(_locked, record, plan, known)
    return Facts(
        host=vms.config.name,
        pools=pools,
        sizes=sizes,
        virtual=await _virtual(plan, known, sizes),
        users=users(vm, vms, plan.leaving),
        locked=locked,
        making=making(vm, vms),
        bitmaps=await _bitmaps(vm, plan, known, sizes),
        snapshots=await _snapshots(vm, plan, known, sizes),
        base_differs=frozenset(
            item.target
            for item in plan.templates
            if item.target in sizes and sizes[item.target][0] != sizes.get(item.source, (0, 0))[0]
        ),
    )


def making(vm: VM, vms: VMs) -> dict[Volume, str]:
    """Files that steps of other VMs are making now, and remove again if they fail."""
    others = (other for other in vms.all() if other is not vm)
    return {volume: other.name for other in others for volume in other.record.made}


def _sizes(pools: Pools, volumes: Iterable[Volume]) -> dict[Volume, tuple[int, int]]:
    found = {}
    for volume in volumes:
        try:
            stat = pools.volume_path(volume.pool, volume.volume).stat()
        except (OSError, SternaError):
            continue
        found[volume] = (stat.st_size, stat.st_blocks * 512)
    return found


async def _virtual(
    plan: Plan, pools: Pools, sizes: dict[Volume, tuple[int, int]]
) -> dict[str, int]:
    found = {}
    for one in plan.relocations:
        top = Volume(pool=one.disk.pool, volume=one.disk.volume)
        if top in sizes:
            path = pools.volume_path(top.pool, top.volume)
            found[one.disk.name] = await image.size_of(path, one.disk.format)
    return found


async def _bitmaps(
    vm: VM, plan: Plan, pools: Pools, sizes: dict[Volume, tuple[int, int]]
) -> dict[str, tuple[str, ...]]:
    """Dirty bitmaps that disks lose: raw images have none, and qemu-img copies none."""
    found: dict[str, tuple[str, ...]] = {}
    for one in plan.relocations:
        disk, there = one.disk, one.there
        top = Volume(pool=disk.pool, volume=disk.volume)
        is_converted = (disk.format, disk.base) != (there.format, there.base)
        loses = is_converted and (there.format == "raw" or vm.process is None)
        if disk.format != "qcow2" or not loses or top not in sizes:
            continue
        if vm.process is not None:
            names = await vm.blocks.bitmaps(node_name(disk.pool, disk.volume))
        else:
            path = pools.volume_path(disk.pool, disk.volume)
            names = (await image.info(path, "qcow2")).bitmaps
        found |= {disk.name: names} if names else {}
    return found


async def _snapshots(
    vm: VM, plan: Plan, pools: Pools, sizes: dict[Volume, tuple[int, int]]
) -> dict[str, tuple[str, ...]]:
    """Snapshots within images of which only what the guest sees is copied."""
    found: dict[str, tuple[str, ...]] = {}
    for one in plan.relocations:
        disk, there = one.disk, one.there
        is_copied = (disk.format, disk.base) == (there.format, there.base) and vm.process is None
        top = Volume(pool=disk.pool, volume=disk.volume)
        if disk.format == "qcow2" and not is_copied and top in sizes:
            path = pools.volume_path(disk.pool, disk.volume)
            names = (await image.info(path, "qcow2")).snapshots
            found |= {disk.name: names} if names else {}
    return found


def users(vm: VM, vms: VMs, volumes: Iterable[Volume]) -> dict[Volume, str]:
    """Other VMs that own these files, or rest on them."""
    wanted = set(volumes)
    found: dict[Volume, str] = {}
    for other in vms.all():
        if other is vm or not other.is_here:
            continue
        theirs = set(chain.own_files(other.record))
        theirs |= {
            Volume(pool=disk.pool, volume=base.volume)
            for disk in other.record.spec.disks
            for base in disk.base
        }
        found |= dict.fromkeys(theirs & wanted, other.name)
    return found


def _locked(record: VMRecord, plan: Plan, pools: Pools) -> frozenset[Volume]:
    """Images of a VM that is off and that somebody has open all the same."""
    volumes = {
        Volume(pool=one.disk.pool, volume=part.volume)
        for one in plan.relocations
        for part in chain.own_images(record, one.disk)
    }
    found = set()
    for volume in volumes:
        with contextlib.suppress(OSError, SternaError):  # not there: another check says so
            if image.is_in_use(pools.volume_path(volume.pool, volume.volume)):
                found.add(volume)
    return frozenset(found)
