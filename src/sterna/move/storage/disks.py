"""Disks of a running VM on their way to other images, by QEMU's mirrors on this host.

Promises: until `switch` is called the guest writes only to the images of before, whatever becomes of
the new ones; after `hold` both are equal and on the disk, and the guest's writes wait for moments;
`switch` takes effect for all disks. Whoever fails in between lets `sterna.vms.mend` clear up.
"""

from __future__ import annotations

import asyncio

from sterna import clock
from sterna.errors import BlockJobFailed, Stalled
from sterna.host.registry import Pools
from sterna.model.disk import node_name
from sterna.model.vm import VMRecord
from sterna.move.storage.plan import Relocation
from sterna.qemu import nodes
from sterna.qemu.blocks import Blocks
from sterna.qemu.nodes import Layer
from sterna.units import MIB
from sterna.vms import chain

POLL_S = 0.2
HELD_POLL_S = 0.002  # each millisecond is the guest's
QUIET = 16 * MIB  # less than a moment's copying: held writes wait for no more than that
QUIET_S = 30.0  # for all disks to be that close at once; a guest that writes faster is held longer
HOLD_S = 20.0  # longest that the guest's writes may wait; its drivers give up after 30 s


class Switchover:
    """All disks of one storage move, from the first mirror to the switch."""

    def __init__(self, blocks: Blocks, pools: Pools, after: VMRecord, *, speed: int) -> None:
        self._blocks = blocks
        self._pools = pools
        self._after = after
        self._speed = speed
        self._jobs: dict[str, str] = {}  # disk -> job
        self.held_ms = 0.0  # for how long the guest's writes waited, at most
        self._held = 0.0
        self._tops: list[tuple[str, Layer, str | None]] = []  # old node, new image, what it is on

    async def mirror(self, one: Relocation) -> None:
        """Open the new images of a disk, which are all there, and begin. Raises QMPError."""
        layers = chain.layers(self._after, one.there, self._pools)
        await self._blocks.add(nodes.chain(layers, read_only=False))
        old, below = node_name(one.disk.pool, one.disk.volume), layers[1:2]
        self._tops.append((old, layers[0], below[0].node if below else None))
        job = f"mirror-{layers[0].node}"
        await self._blocks.mirror(
            job,
            old,
            layers[0].node,
            sync="full" if one.is_whole else "top",
            speed=self._speed,
            is_held=True,
        )
        self._jobs[one.disk.name] = job

    async def progress(self) -> dict[str, tuple[int, int, bool]]:
        """By disk: bytes done, bytes in all, and whether it is in step with the guest.

        Raises BlockJobFailed as soon as one has failed.
        """
        jobs = await self._blocks.jobs()
        found = {}
        for disk, job in self._jobs.items():
            seen = jobs.get(job)
            if seen is None or seen.error or seen.status == "concluded":
                reason = seen.error if seen is not None and seen.error else "the copy ended early"
                name = self._blocks.session.name
                raise BlockJobFailed(job=job, name=name, reason=f"disk {disk}: {reason}")
            found[disk] = (seen.done, seen.total, seen.status == "ready")
        return found

    async def hold(self) -> None:
        """All disks are in step: stop the guest's writes with both images equal and on the disk.

        Raises Stalled, BlockJobFailed, QMPError.
        """
        await self._calm()
        for job in self._jobs.values():
            await self._blocks.set_speed(job, 0)
        self._held = clock.monotonic()
        for job in self._jobs.values():
            await self._blocks.complete(job)
        try:
            async with asyncio.timeout(HOLD_S):
                for job in self._jobs.values():
                    await self._until(job, "pending")
        except TimeoutError as error:
            raise Stalled(
                reason=f"the guest writes faster than the new storage takes it: its disks were "
                f"not in step within {HOLD_S:g} s"
            ) from error
        for old, layer, below in self._tops:
            if layer.format == "qcow2":  # others keep no dirty bitmaps
                await self._blocks.copy_bitmaps(old, layer.node)
            await self._blocks.flush(nodes.image(layer, backing=below)[1])

    async def _until(self, job: str, status: str) -> None:
        """`Blocks.wait`, more often: the guest's writes wait with us. Raises BlockJobFailed."""
        while (seen := (await self._blocks.job(job)).status) != status:
            if seen == "concluded":
                name = self._blocks.session.name
                raise BlockJobFailed(job=job, name=name, reason="it ended early")
            await asyncio.sleep(HELD_POLL_S)

    async def _calm(self) -> None:
        """A moment at which little is left to copy; not waited for without end."""
        try:
            async with asyncio.timeout(QUIET_S):
                while True:
                    seen = (await self.progress()).values()
                    if sum(total - done for done, total, _ in seen) <= QUIET:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return

    async def switch(self) -> None:
        """The record names the new images: let the guest write to them. Raises BlockJobFailed."""
        for job in self._jobs.values():
            await self._blocks.finalize(job)
        for job in self._jobs.values():
            await self._until(job, "concluded")
        self.held_ms = round((clock.monotonic() - self._held) * 1000, 1)
