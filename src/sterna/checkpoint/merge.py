"""Deleted checkpoints leave: images that nothing rests on go, others are merged with what does.

Promises: the guest writes on; each disk of each checkpoint is one step whose record is written
while the images of before and after show the same, so whenever daemon or QEMU dies, the record is
a right view of the disk. A merge writes into the image of the deleted checkpoint itself, so that
one can never be shown again; a merge that was cancelled or cut is taken up where it is asked for
again.
"""

from __future__ import annotations

import asyncio
import contextlib

from sterna import clock
from sterna.checkpoint import tree
from sterna.errors import BlockJobFailed, QMPError, SternaError
from sterna.model.disk import Checkpoint, Image, node_name
from sterna.model.move import DiskProgress, Phase
from sterna.model.vm import Disk, VMRecord
from sterna.operations.runner import Job
from sterna.qemu import image
from sterna.qemu.blocks import POLL_S, BlockJob, Blocks
from sterna.qemu.nodes import file_of
from sterna.tasks import finish
from sterna.vms import chain
from sterna.vms.kept import Kept
from sterna.vms.launch import Launcher
from sterna.vms.machine import VM
from sterna.vms.saved import clear_quietly

SAMPLE_S = 0.25
CANCEL_S = 20.0  # for a job to end: it flushes what it wrote


class Merger:
    """Clears the deleted checkpoints of one VM, which the caller holds the lease of."""

    def __init__(self, vm: VM, launcher: Launcher, kept: Kept, job: Job) -> None:
        self._vm = vm
        self._launcher = launcher
        self._kept = kept
        self._job = job
        self.merged = 0  # images

    async def run(self) -> None:
        """Until nothing more can go. Raises what QEMU or qemu-img says no to."""
        await self.drop()
        while (gone := tree.mergeable(self._vm.record)) is not None:
            disks = [disk for disk in self._vm.record.spec.disks if disk.name in gone.images]
            for disk in disks:
                await self._merge(tree.find(self._vm.record, gone.id, hidden_too=True), disk)
            if not disks:
                await self._vm.write(**tree.without(self._vm.record, gone))
            await self.drop()

    async def drop(self) -> None:
        """Forget those that nothing rests on, and remove all files that have no owner any more."""
        if changes := tree.dropped(self._vm.record):
            await self._vm.write(**changes)
        await clear_quietly(
            self._vm, self._launcher, self._kept, lambda text: self._job.log(text, "warning")
        )

    async def _merge(self, gone: Checkpoint, disk: Disk) -> None:
        record = self._vm.record
        disk = next(one for one in record.spec.disks if one.name == disk.name)
        base = gone.images[disk.name]
        resting = tree.overlays(record, disk, base.volume)
        if not resting:  # of this disk nothing was made after it
            raise BlockJobFailed(job=base.volume, name=self._vm.name, reason="nothing rests on it")
        upper = resting[0][1]
        is_open = gone in chain.line(record, record.at)
        if is_open and self._vm.process is not None:
            await self._live(gone, disk, upper)
        else:
            await self._cold(gone, disk, upper)
        self.merged += 1
        self._job.log(f"{upper.volume} was merged into {base.volume}")
        await self.drop()

    # ---- nobody has them open ----------------------------------------------------------------

    async def _cold(self, gone: Checkpoint, disk: Disk, upper: Image) -> None:
        path = self._launcher.pools.volume_path(disk.pool, upper.volume)
        await image.commit(path)
        await self._put_rest_on(gone, disk, upper, exclude=())
        await self._vm.write(**tree.merged(self._vm.record, gone, disk))

    async def _put_rest_on(
        self, gone: Checkpoint, disk: Disk, upper: Image, exclude: tuple[str, ...]
    ) -> None:
        """The headers of what rests on the image that is to go; we go by the record, others do not."""
        for _, resting in tree.overlays(self._vm.record, disk, upper.volume):
            if resting.volume not in exclude:
                path = self._launcher.pools.volume_path(disk.pool, resting.volume)
                await image.put_on(path, gone.images[disk.name])

    # ---- the guest writes on -----------------------------------------------------------------

    async def _live(self, gone: Checkpoint, disk: Disk, upper: Image) -> None:
        blocks, record = self._vm.blocks, self._vm.record
        base = gone.images[disk.name]
        top_node, upper_node = node_name(disk.pool, disk.volume), node_name(disk.pool, upper.volume)
        is_top = upper_node == top_node
        name = f"commit-{node_name(disk.pool, base.volume)}"
        opened = tuple(one.volume for one in chain.images(record, disk))
        await blocks.commit(
            name,
            top_node,
            top=upper_node,
            base=node_name(disk.pool, base.volume),
            base_file=base.volume,
            is_held=True,
        )
        try:
            await self._follow(blocks, name, disk, "ready" if is_top else "pending")
            await self._put_rest_on(gone, disk, upper, exclude=opened)
            if not is_top:  # one that is ready and completes is flushed by its job
                await blocks.sync(node_name(disk.pool, base.volume))
            with self._job.uncancellable():
                if is_top:
                    await blocks.complete(name)
                    await blocks.wait(name, {"pending"})
                await self._vm.write(**tree.merged(record, gone, disk))
                await self._take_effect(blocks, name, record, disk)
        except BaseException:
            await finish(_cancel(blocks, name))
            raise
        with contextlib.suppress(QMPError):  # still in use: it is closed at the next start
            await blocks.delete(upper_node, file_of(upper_node))

    async def _take_effect(self, blocks: Blocks, name: str, before: VMRecord, disk: Disk) -> None:
        """Its record is written. A job that fails now leaves the guest writing where it wrote."""
        try:
            await blocks.finalize(name)
            await blocks.wait(name, {"concluded"})
        except (BlockJobFailed, QMPError):
            top = (await blocks.top_nodes()).get(disk.name)
            if top == node_name(disk.pool, disk.volume):
                await self._vm.write(
                    spec=before.spec,
                    checkpoints=before.checkpoints,
                    at=before.at,
                    leaving=before.leaving,
                )
            raise
        await blocks.dismiss(name)

    async def _follow(self, blocks: Blocks, name: str, disk: Disk, wanted: str) -> None:
        began = clock.monotonic()
        sampled = 0.0
        while (job := await blocks.job(name)).status != wanted:
            if job.status == "concluded":
                raise BlockJobFailed(job=name, name=self._vm.name, reason="it ended early")
            if clock.monotonic() - sampled > SAMPLE_S:
                sampled = clock.monotonic()
                self._job.sample(_sample(job, disk.name, sampled - began))
            await asyncio.sleep(POLL_S)


def _sample(job: BlockJob, disk: str, seconds: float) -> DiskProgress:
    return DiskProgress(
        time_s=round(seconds, 3),
        phase=Phase.DISKS,
        transferred=job.done,
        remaining=job.remaining,
        total=job.total,
        rate=round(job.done / seconds) if seconds else 0.0,
        disks={disk: round(job.done / job.total, 3) if job.total else 1.0},
    )


async def _cancel(blocks: Blocks, name: str) -> None:
    """The disk is as it was: what was written down into the base is hidden by what lies above."""
    with contextlib.suppress(SternaError, TimeoutError):
        async with asyncio.timeout(CANCEL_S):
            while (job := (await blocks.jobs()).get(name)) is not None:
                if job.status == "concluded":
                    await blocks.dismiss(name)
                else:
                    with contextlib.suppress(QMPError):
                        await blocks.cancel_now(name)
                await asyncio.sleep(POLL_S)
