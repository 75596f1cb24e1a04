"""What a step that its daemon did not finish left of a VM that this host owns: cleared, by the record.

Promises: after `mend` the VM's QEMU, if it lives, has exactly the images open that the record names,
no job works on them, and no file is left that belongs to nobody. A disk that had come to its switch
to another image (a job that is `pending`) is on the one that the record names afterwards. Nothing
that QEMU has open is ever deleted. May be called again at any time, and is, at each start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sterna.errors import QMPError, SternaError
from sterna.host.registry import Pools
from sterna.model.disk import ImageFormat, Volume, node_name
from sterna.model.vm import Disk, VMRecord
from sterna.qemu import nodes
from sterna.qemu.blocks import POLL_S, BlockJob, Blocks
from sterna.qemu.nodes import file_of
from sterna.vms import chain, media
from sterna.vms.kept import Kept
from sterna.vms.machine import VM

log = logging.getLogger(__name__)

END_S = 20.0  # for a job to end: it flushes what it wrote
MERGE_S = 600.0  # nobody else can use the VM meanwhile
_JOB = re.compile(r"[a-z]+-(v[0-9a-f]{15})")
_FIXED = ("fw-code", "fw-vars")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What was found, for the operation that is to be ended with it."""

    was_cut: bool = False  # files of a step that was not through were removed
    was_through: bool = False  # files that had left were removed: the step had taken effect
    problem: str = ""  # why not all could be cleared now


async def mend(vm: VM, pools: Pools, kept: Kept) -> Mended:
    """Clear up after a former life. Raises what QEMU or a pool says no to; then ask again later."""
    if vm.process is not None and vm.monitor is None:
        return Mended()  # it lives and does not answer: whatever it has open stays
    mended = Mended(was_cut=bool(vm.record.made), was_through=bool(vm.record.leaving))
    used: frozenset[str] = frozenset()
    if vm.monitor is not None:
        blocks = Blocks(vm.monitor.session)
        await _withdraw_exports(blocks)
        await _end_jobs(blocks, vm.record, pools)
        await _stack(vm, blocks, pools)
        await _follow(vm, blocks, pools, kept)
        await media.mend(vm, blocks, pools)
        used = await _close_strays(blocks, vm.record, pools)
    await clear_files(vm, pools, kept, used)
    return mended


async def clear_files(vm: VM, pools: Pools, kept: Kept, used: Iterable[str] = ()) -> None:
    """Remove `made` and `leaving`, but for files whose nodes are `used`; then say so in the record."""
    own, used = set(chain.own_files(vm.record)), set(used)
    busy = {
        volume for volume in own | {*vm.record.made, *vm.record.leaving} if _node(volume) in used
    }
    stay = own | set(kept.used_but_by(vm.id))  # such as a template that was copied for two
    made = [volume for volume in vm.record.made if volume not in stay]
    leaving = [volume for volume in vm.record.leaving if volume not in stay]
    if not vm.record.leaving:
        await kept.forsake(vm.id)
    for volume in made:
        if volume not in busy:
            await pools.delete_volume(volume.pool, volume.volume)
    await kept.clear(vm.id, [volume for volume in leaving if volume not in busy])
    rest_made = tuple(volume for volume in made if volume in busy)
    rest_leaving = tuple(volume for volume in leaving if volume in busy)
    for volume in (*rest_made, *rest_leaving):
        log.warning("%s is still open in the QEMU of %s and stays for now", volume, vm.name)
    if (rest_made, rest_leaving) != (vm.record.made, vm.record.leaving):
        await vm.write(made=rest_made, leaving=rest_leaving)


async def clear_departed(vm: VM, pools: Pools, kept: Kept) -> None:
    """What a VM that another host owns left here, of this move and of earlier steps.

    Removed, or kept under another name. May be repeated. Raises PoolUnusable, StateNotWritten.
    """
    if vm.record.departing:
        await kept.clear(vm.id, vm.record.departing)
        await vm.write(departing=())
    if vm.record.made or vm.record.leaving:
        await clear_files(vm, pools, kept)


def _node(volume: Volume) -> str:
    return node_name(volume.pool, volume.volume)


def _chain_nodes(record: VMRecord, disk: Disk) -> tuple[str, ...]:
    return tuple(node_name(disk.pool, image.volume) for image in chain.images(record, disk))


# ---- jobs -----------------------------------------------------------------------------------


async def _withdraw_exports(blocks: Blocks) -> None:
    """Nobody writes to the disks of a VM that is owned here but its guest."""
    for export in await blocks.exports():
        with contextlib.suppress(QMPError):
            await blocks.unexport(export)
    with contextlib.suppress(QMPError):  # none was started
        await blocks.nbd_server_stop()


async def _end_jobs(blocks: Blocks, record: VMRecord, pools: Pools) -> None:
    """Pending jobs take effect if the record says so; all others are cancelled."""
    for node in await blocks.network_nodes():
        await blocks.yank(node)  # its other end may be gone, or hang
    for job in (await blocks.jobs()).values():
        if job.status == "pending" and await _is_recorded(blocks, record, pools, job):
            log.info("job %s of %s takes effect, as its record says", job.id, record.spec.name)
            await blocks.finalize(job.id)
        elif job.status != "concluded":
            log.info("job %s of %s (%s) is cancelled", job.id, record.spec.name, job.status)
            with contextlib.suppress(QMPError):  # it may end in this very moment
                await blocks.cancel_now(job.id)
    async with asyncio.timeout(END_S):
        while left := await blocks.jobs():
            for job in left.values():
                if job.status == "concluded":
                    with contextlib.suppress(QMPError):
                        await blocks.dismiss(job.id)
            await asyncio.sleep(POLL_S)


async def _is_recorded(blocks: Blocks, record: VMRecord, pools: Pools, job: BlockJob) -> bool:
    """Whether the record names what this job would bring about, and QEMU has something else open.

    The record is written while a job is pending, before it is finalized: so the record is either
    what the disk has open now (then the job is not wanted), or what it will have.
    """
    match = _JOB.fullmatch(job.id)
    now = await blocks.chains()
    for disk in record.spec.disks:
        if match and match[1] in _chain_nodes(record, disk):
            wanted = [str(layer.path) for layer in chain.layers(record, disk, pools)]
            return now.get(disk.name) != wanted
    return False


# ---- nodes ----------------------------------------------------------------------------------


async def _stack(vm: VM, blocks: Blocks, pools: Pools) -> None:
    """A new image on top that is recorded and was not put there any more: it is put there now.

    It is empty still, so nothing is lost whichever way this ends.
    """
    now = await blocks.chains()
    overlays: dict[str, str] = {}
    for disk in vm.record.spec.disks:
        layers = chain.layers(vm.record, disk, pools)
        if len(layers) > 1 and now.get(disk.name) == [str(layer.path) for layer in layers[1:]]:
            log.info("disk %s of %s gets %s on top", disk.name, vm.name, layers[0].path)
            if layers[0].node not in await blocks.names():
                await blocks.add(nodes.image(layers[0], backing=None, read_only=disk.read_only))
            overlays[layers[1].node] = layers[0].node
    if overlays:
        await blocks.snapshot(overlays)


async def _follow(vm: VM, blocks: Blocks, pools: Pools, kept: Kept) -> None:
    """A switch that failed after it was recorded: the guest still writes to an image that was to leave.

    A merge is done again, for the record cannot name what is gone from its tree. Else the disk stays
    where its guest writes, and its record says so.
    """
    tops, formats, now = await blocks.top_nodes(), await blocks.formats(), await blocks.chains()
    disks, back, away = [], set(), set()
    for disk in vm.record.spec.disks:
        top = tops.get(disk.name, "")
        before = next((volume for volume in vm.record.leaving if _node(volume) == top), None)
        recorded = Volume(pool=disk.pool, volume=disk.volume)
        disks.append(disk)
        if before is None or before == recorded:
            continue
        if str(pools.volume_path(disk.pool, disk.volume)) in now.get(disk.name, ()):
            await _merge_again(vm, blocks, before, recorded)
            continue
        log.error("disk %s of %s is still on %s; its record follows", disk.name, vm.name, before)
        form: ImageFormat = "raw" if formats.get(top) == "raw" else "qcow2"
        names = {image.volume for image in chain.own_images(vm.record, disk)[1:]}
        back |= {before} | {Volume(pool=before.pool, volume=name) for name in names}
        away |= {Volume(pool=disk.pool, volume=name) for name in names | {disk.volume}}
        disks[-1] = replace(disk, pool=before.pool, volume=before.volume, format=form)
    if back:
        await kept.forsake(vm.id)
        leaving = tuple({*vm.record.leaving, *away} - back)
        await vm.write(spec=replace(vm.record.spec, disks=tuple(disks)), leaving=leaving)


async def _merge_again(vm: VM, blocks: Blocks, upper: Volume, base: Volume) -> None:
    """Merge what the guest writes to into the image that its record names. Else it is never deleted."""
    log.error("%s of %s is merged into %s once more", upper, vm.name, base)
    job = f"commit-{_node(base)}"
    try:
        async with asyncio.timeout(MERGE_S):
            await blocks.commit(
                job, _node(upper), top=_node(upper), base=_node(base), base_file=base.volume
            )
            await blocks.wait(job, {"ready"})
            await blocks.complete(job)
            while (await blocks.job(job)).status != "concluded":  # noqa: ASYNC110 - no event is missed so
                await asyncio.sleep(POLL_S)
            await blocks.dismiss(job)
    except BaseException:
        await vm.write(leaving=tuple(one for one in vm.record.leaving if one != upper))
        raise


async def _close_strays(blocks: Blocks, record: VMRecord, pools: Pools) -> frozenset[str]:
    """Close nodes that belong to no chain or drive of the record, those on top first; what remains open."""
    expected = {node for disk in record.spec.disks for node in _chain_nodes(record, disk)}
    loaded = (chain.medium(cd, pools) for cd in record.spec.cds)
    expected |= {medium.node for medium in loaded if medium is not None}
    expected |= {file_of(node) for node in expected} | {*_FIXED, *(file_of(n) for n in _FIXED)}
    closing = True
    while closing:
        closing = False
        for node in await blocks.names() - expected:
            with contextlib.suppress(QMPError):  # something rests on it still: the next round
                await blocks.delete(node)
                log.info("closed %s, which nothing of %s uses", node, record.spec.name)
                closing = True
    return await blocks.names()


async def mend_quietly(vm: VM, pools: Pools, kept: Kept) -> Mended:
    """`mend`; what cannot be cleared now is told, and tried again at the next start."""
    try:
        return await mend(vm, pools, kept)
    except (SternaError, TimeoutError) as error:
        reason = str(error) or "QEMU did not end a job in time"
        log.warning("%s could not be cleared up: %s", vm.name, reason)
        made, leaving = vm.record.made, vm.record.leaving
        return Mended(was_cut=bool(made), was_through=bool(leaving), problem=reason)
