"""What must be known of a folder and of this host before an import."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from sterna.errors import NotAnExport, SternaError
from sterna.host.registry import Pools
from sterna.model.disk import Volume
from sterna.model.edge import parse_json
from sterna.model.port import DISKS, MANIFEST, ImportWishes, Manifest
from sterna.model.vm import Firmware, VMSpec
from sterna.port.checks import Facts, consistent
from sterna.port.copying import sha256
from sterna.port.plan import Plan, record_of
from sterna.qemu import image
from sterna.qemu.argv import FirmwareFiles
from sterna.qemu.image import ImageInfo
from sterna.vms import chain
from sterna.vms.service import VMs
from sterna.vms.volumes import uses

MANIFEST_LIMIT = 16 << 20  # bytes; ours have a few KiB for each checkpoint
REGISTERED = f"{MANIFEST}.registered"  # its name once the folder's disks are in use


def read_manifest(folder: Path) -> Manifest:
    """What `folder` holds. Raises NotAnExport; blocks."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            manifest = parse_json(Manifest, file.read(MANIFEST_LIMIT), MANIFEST)
    except FileNotFoundError as error:
        if (folder / REGISTERED).exists():
            reason, fix = "it was registered, its disks are in use", "Export the VM once more"
        else:
            reason, fix = f"there is no {MANIFEST} in it", "Name the folder that was exported"
        raise NotAnExport(folder=folder, reason=reason, fix=fix) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotAnExport(folder=folder, reason=reason, fix="Look at its storage") from error
    except SternaError as error:
        fix = "Use a Sterna as new as the one that wrote it, or export the VM once more"
        raise NotAnExport(folder=folder, reason=error.message, fix=fix) from error
    if reason := consistent(manifest):
        raise NotAnExport(folder=folder, reason=reason, fix="Export the VM once more")
    return manifest


def folder_pool(folder: Path, pools: Pools) -> str:
    """The pool of this host that the folder's disks are; empty: none."""
    there = os.path.realpath(folder / DISKS)
    return next((pool.name for pool in pools.list() if os.path.realpath(pool.path) == there), "")


async def gather(manifest: Manifest, wishes: ImportWishes, plan: Plan, vms: VMs) -> Facts:
    """All but what takes long: `spoilt` is found by `spoilt_files`."""
    launcher, spec = vms.launcher, plan.record.spec
    disks = Path(wishes.folder) / DISKS
    sizes = await asyncio.to_thread(_sizes, disks, [one.name for one in manifest.files])
    pools = {facts.pool.name: facts for facts in await launcher.pools.facts()}
    usable = {name for name, facts in pools.items() if not facts.problem}
    taken: frozenset[Volume] = frozenset()
    templates: frozenset[Volume] = frozenset()
    if not wishes.register:
        taken, templates = await _targets(manifest, plan, launcher.pools, usable)
    here = [vm for vm in vms.all() if vm.is_here]
    tombstone = vms.by_id(spec.id)
    has_id = [vm.name for vm in here if vm.id == spec.id]
    has_id += [damaged.key for damaged in vms.damaged if damaged.key == spec.id]
    macs = {nic.mac: vm.name for vm in here for nic in vm.record.spec.nics}
    return Facts(
        host=vms.config.name,
        sizes=sizes,
        headers=await _headers(manifest, disks, sizes),
        in_use=await asyncio.to_thread(_in_use, vms, wishes, sizes),
        pools=pools,
        taken=taken,
        templates=templates,
        switches=await asyncio.to_thread(_switches, vms, plan),
        machines=launcher.capabilities.machines,
        newest=launcher.capabilities.default_machine,
        firmware=await asyncio.to_thread(_firmware, spec.firmware),
        accel=launcher.accel,
        name_taken=vms.find(spec.name) is not None,
        id_taken=has_id[0] if has_id else "",
        went_to=tombstone.record.ownership.peer
        if tombstone is not None and tombstone.record.ownership.state == "released"
        else "",
        macs={nic.mac: macs[nic.mac] for nic in spec.nics if nic.mac in macs},
        boot_missing=await asyncio.to_thread(_boot_missing, spec),
    )


async def _targets(
    manifest: Manifest, plan: Plan, pools: Pools, usable: Collection[str]
) -> tuple[frozenset[Volume], frozenset[Volume]]:
    """Files that are there already, and those of them that are the same templates."""
    known = {one.name: one for one in manifest.files}
    taken, same = set(), set()
    for one in plan.arrivals:
        if one.place.pool not in usable:
            continue
        path = pools.volume_path(one.place.pool, one.place.volume)
        if not await asyncio.to_thread(os.path.lexists, path):
            continue
        taken.add(one.place)
        wanted = known[one.name]
        if one.is_template and (await asyncio.to_thread(path.stat)).st_size == wanted.size:
            same |= {one.place} if await sha256(path) == wanted.sha256 else set()
    return frozenset(taken), frozenset(same)


def _sizes(disks: Path, names: Iterable[str]) -> dict[str, int]:
    """Of plain files only: a link could lead anywhere."""
    found = {}
    for name in names:
        try:
            one = os.lstat(disks / name)
        except OSError:
            continue
        if stat.S_ISREG(one.st_mode):
            found[name] = one.st_size
    return found


async def _headers(
    manifest: Manifest, disks: Path, sizes: dict[str, int]
) -> dict[str, ImageInfo | None]:
    record = record_of(manifest)
    found: dict[str, ImageInfo | None] = {}
    for disk in record.spec.disks:
        for one in (*chain.own_images(record, disk), *disk.base):
            if one.format == "qcow2" and one.volume in sizes:
                try:
                    found[one.volume] = await image.info(disks / one.volume, "qcow2")
                except SternaError:
                    found[one.volume] = None
    return found


def _in_use(vms: VMs, wishes: ImportWishes, names: Iterable[str]) -> dict[str, str]:
    pool = folder_pool(Path(wishes.folder), vms.launcher.pools)
    if not wishes.register or not pool:
        return {}
    used = uses(vm.record for vm in vms.all() if vm.is_here)
    places = {name: used.get(Volume(pool=pool, volume=name)) for name in names}
    return {name: use.vm for name, use in places.items() if use is not None}


def _switches(vms: VMs, plan: Plan) -> dict[str, tuple[str, str]]:
    problems = {}
    for nic in plan.record.spec.nics:
        try:
            vms.launcher.switches.require(nic.switch, nic.vlan, nic.trunk)
        except SternaError as error:
            problems[nic.name] = (error.message, error.advice)
    return problems


def _boot_missing(spec: VMSpec) -> tuple[str, ...]:
    wanted = (spec.boot.kernel, spec.boot.initrd) if spec.boot else ()
    return tuple(path for path in wanted if path and not Path(path).is_file())


def _firmware(firmware: Firmware) -> str:
    if firmware is Firmware.BIOS:
        return ""
    try:
        FirmwareFiles.find(Path("/nonexistent"))
    except SternaError as error:
        return error.message
    return ""
