"""Media in the CD drives of a VM: what may be one, and a drive of a running QEMU given another.

A medium is a raw file in a pool. It is only ever read, may be in many drives of many VMs at once,
and belongs to none of them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from sterna import clock
from sterna.errors import MediumRefused, QMPError, SternaError
from sterna.host.registry import Pools
from sterna.model.disk import Volume
from sterna.model.vm import CD, VMSpec
from sterna.qemu import nodes
from sterna.qemu.argv import cd_device
from sterna.qemu.blocks import Blocks
from sterna.qemu.nodes import Layer, file_of
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.volumes import Use

log = logging.getLogger(__name__)

QCOW2 = b"QFI\xfb"
TRIES = 20  # two commands to QEMU each; a guest that looks all the time hits that rarely


async def require_readable(vm: str, medium: Volume, pools: Pools) -> None:
    """It is there and looks like a CD. Raises MediumRefused, PoolNotFound, PoolUnusable, VolumeForbidden."""
    path = pools.volume_path(medium.pool, medium.volume)

    def refused(reason: str, fix: str) -> MediumRefused:
        return MediumRefused(medium=medium, vm=vm, reason=reason, fix=fix)

    try:
        size, start = await pools.peek(medium.pool, medium.volume, len(QCOW2))
    except FileNotFoundError as error:
        raise refused(f"{path} does not exist", f"Put it into pool {medium.pool}") from error
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
        raise refused(reason, "Look at that file and its storage") from error
    if not size:
        raise refused(f"{path} is empty", "Give a file with the content of a CD")
    if start == QCOW2:
        fix = f"Make a raw one: qemu-img convert -O raw {path} NEW.iso"
        raise refused(f"{path} is a qcow2 image, and a CD is read as it is", fix)


def require_unwritten(
    vm: str, media: Iterable[Volume], used: Mapping[Volume, Use], own: Collection[Volume] = ()
) -> None:
    """Nobody writes to them. `used`: by the VMs of this host; `own`: disks of one that is to be made.

    Raises MediumRefused.
    """
    for medium in media:
        use = used.get(medium)
        reason = ""
        if use is not None and (use.is_own or use.leaves):
            reason = use.leaves or f"it is a disk of {use.vm}, which may write to it"
        elif medium in own:
            reason = "it is a disk of the same VM"
        if reason:
            raise MediumRefused(medium=medium, vm=vm, reason=reason, fix="Insert a copy of it")


def without(spec: VMSpec) -> VMSpec:
    """`spec` with empty drives."""
    return replace(spec, cds=tuple(CD(name=cd.name) for cd in spec.cds))


async def load(blocks: Blocks, drive: str, medium: Layer | None) -> None:
    """Give a drive that medium and close it; None: take out what is in it, and leave it open.

    A tray that the guest has locked is opened all the same. May be repeated. If QEMU refuses
    (QMPError), what was in the drive may be out of it, but is open in QEMU still.
    """
    device = cd_device(drive)
    old = (await blocks.media()).get(drive, "")
    if medium is not None and medium.node == old:
        await blocks.close_tray(device)
        return
    added = medium is not None and medium.node not in await blocks.names()
    if medium is not None and added:
        await blocks.add(nodes.image(medium, backing=None, read_only=True))
    try:
        await _swap(blocks, device, medium.node if medium is not None else "")
    except QMPError:
        if medium is not None and added:
            with contextlib.suppress(QMPError):
                await blocks.delete(medium.node, file_of(medium.node))
        raise
    if old:
        await blocks.delete(old, file_of(old))


async def _swap(blocks: Blocks, device: str, node: str) -> None:
    """Guests close a tray that they find open (Linux does when it reads), so more than one try."""
    for attempt in range(TRIES):
        try:
            await blocks.open_tray(device)
            await blocks.remove_medium(device)
            if node:
                await blocks.insert_medium(device, node)
                await blocks.close_tray(device)
        except QMPError:
            if attempt == TRIES - 1 or await blocks.is_tray_open(device):
                raise
        else:
            return


async def mend(vm: VM, blocks: Blocks, pools: Pools) -> None:
    """What the drives of an adopted QEMU hold becomes what the record says.

    A medium that cannot be had any more is taken out, in the record too.
    """
    now = await blocks.media()
    for cd in vm.record.spec.cds:
        medium = chain.medium(cd, pools)
        if now.get(cd.name, "") == (medium.node if medium else ""):
            continue
        try:
            await load(blocks, cd.name, medium)
        except QMPError as error:
            log.error("CD drive %s of %s is emptied: %s", cd.name, vm.name, error)  # noqa: TRY400
            await load(blocks, cd.name, None)
            await write(vm, CD(name=cd.name))
            note = (
                f"{clock.now()} {cd.medium} could not be put back into CD drive {cd.name}: {error}"
            )
            await vm.write(notes=(*vm.record.notes[-9:], note))
        else:
            what = cd.medium or "nothing"
            log.info("CD drive %s of %s has %s now, as its record says", cd.name, vm.name, what)


async def write(vm: VM, cd: CD) -> None:
    """The record names that as the state of its drive, durably."""
    known = vm.record.spec.cds
    cds = tuple(cd if one.name == cd.name else one for one in known)
    if cd.name not in {one.name for one in known}:
        cds = (*known, cd)
    await vm.write(spec=replace(vm.record.spec, cds=cds))


async def put_back(vm: VM, cd: CD, pools: Pools) -> None:
    """After a change that failed: the drive as `cd` says, if QEMU can; else when it is next found."""
    if vm.monitor is not None:
        try:
            await load(vm.blocks, cd.name, chain.medium(cd, pools))
        except SternaError as error:
            log.warning("CD drive %s of %s is not as it was: %s", cd.name, vm.name, error)
