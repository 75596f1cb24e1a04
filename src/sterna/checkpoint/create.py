"""Making a checkpoint: new, empty images are put on top of the disks, and memory goes into a file.

Promises: disks and memory are of one instant, in which the guest stands still for no longer than in
a move; whatever fails before the end is undone, the guest goes on. The order, so that whoever dies
finds a right view of the disks in the record:

    made (names) -> files -> opened -> rounds of memory -> guest stopped -> record: new tops, the
    checkpoint -> one transaction of all disks -> last of memory -> guest goes on -> hash ->
    record: its memory

An empty image over the old top shows what that shows, so between the record and the transaction
both say the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from sterna import clock
from sterna.checkpoint import memory_file, tree
from sterna.checkpoint.memory_file import MemoryFile
from sterna.checkpoint.merge import Merger
from sterna.errors import CheckpointRefused, ImageMissing, QMPError
from sterna.model.disk import Checkpoint, Image, StateFile, Volume, node_name
from sterna.model.move import Phase
from sterna.model.vm import Disk
from sterna.move.undo import Undo
from sterna.operations.runner import Job
from sterna.qemu import image, nodes
from sterna.qemu.blocks import Blocks
from sterna.qemu.nodes import Layer, file_of
from sterna.units import format_duration, format_size
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.saved import clear_quietly
from sterna.vms.service import VMs


def require_possible(vm: VM, memory: bool | None) -> bool:
    """Whether memory is part of it. Raises CheckpointRefused."""
    state = vm.state
    if vm.process is None:
        if memory and vm.record.saved is None:
            raise CheckpointRefused(
                vm=vm.name, reason="it is off and has no memory", fix="Leave --memory out"
            )
        return memory is not False and vm.record.saved is not None
    if vm.monitor is None or state not in ("running", "paused"):
        raise CheckpointRefused(
            vm=vm.name, reason=f"it is {state}", fix=f"See: sterna vm show {vm.name}"
        )
    if memory is not False and state == "paused":
        raise CheckpointRefused(  # QEMU leaves the state after a migration only by running
            vm=vm.name,
            reason="it is paused, and its memory could be taken only once",
            fix=f"Resume it first: sterna vm resume {vm.name}; or give --disks-only",
        )
    return memory is not False


def new_volume(vm: str, disk: Disk, identity: str) -> Volume:
    """Name of a new top image."""
    return Volume(pool=disk.pool, volume=f"{vm}-{disk.name}.{identity}.qcow2")


async def make_overlay(vms: VMs, place: Volume, below: Image) -> None:
    """An empty image of the same size, over `below` in the same pool."""
    pools = vms.launcher.pools
    size = await image.size_of(pools.volume_path(place.pool, below.volume), below.format)
    path = pools.volume_path(place.pool, place.volume)
    await image.create(path, "qcow2", size, below)


class Creation:
    """One checkpoint of one VM, whose lease the caller holds."""

    def __init__(  # noqa: PLR0913 - what, how, and who does it
        self,
        vms: VMs,
        vm: VM,
        job: Job,
        *,
        name: str,
        with_memory: bool,
        max_downtime_ms: int,
        hidden: bool = False,
    ) -> None:
        self._vms = vms
        self._vm = vm
        self._job = job
        self.undo = Undo(job)
        self._max_downtime_ms = max_downtime_ms
        self._disks = tree.writable(vm.record)
        self._stopped = 0.0
        self._pause_ms: float | None = None
        taken = {one.id for one in vm.record.checkpoints}
        identity = job.id[:8]  # whoever finds the operation unfinished knows what to look for
        while identity in taken:
            identity = f"{(int(identity, 16) + 1) % (1 << 32):08x}"
        self.checkpoint = Checkpoint(id=identity, name=name, created=clock.now(), hidden=hidden)
        self._memory = (
            MemoryFile(vm, vms.launcher, f"{vm.name}-{identity}-{name}") if with_memory else None
        )
        self._overlays = {disk.name: new_volume(vm.name, disk, identity) for disk in self._disks}

    async def run(self) -> dict[str, Any]:
        """The report of a success."""
        vm = self._vm
        if self._memory is not None and vm.process is not None:
            await self._memory.require_room()
        is_live = vm.process is not None
        await asyncio.to_thread(self._look)
        undo = self.undo
        async with undo:
            undo.push("remove the files that were made", self._remove_made)
            await self._make_files()
            if is_live:
                undo.push("take the checkpoint back", self._take_back)
                await self._open()
            state: StateFile | None = None
            if self._memory is not None and is_live:
                state = await self._with_memory(self._memory, undo)
            elif self._memory is not None and vm.record.saved is not None:
                state = await self._memory.link(vm.record.saved)
            await self._settle(state)
        return self._report(state)

    def _look(self) -> None:
        """Every image is there, and nobody changes what is frozen. Raises ImageMissing, CheckpointRefused."""
        vm, launcher = self._vm, self._vms.launcher
        for disk in self._disks:
            paths = [layer.path for layer in chain.layers(vm.record, disk, launcher.pools)]
            for path in paths:
                if not path.is_file():
                    raise ImageMissing(what=f"disk {disk.name}", path=path, host=launcher.host)
            if vm.process is None and image.is_in_use(paths[0]):
                raise CheckpointRefused(
                    vm=vm.name,
                    reason=f"it is off, but another program has {paths[0]} open",
                    fix=f"End that program; find it with: lsof {paths[0]}",
                )

    async def _make_files(self) -> None:
        self._job.phase = Phase.DISKS
        files = [*self._overlays.values(), *(self._memory.volumes if self._memory else ())]
        await self._vm.write(made=(*self._vm.record.made, *files))
        async with self._job.step("disks") as step:
            for disk in self._disks:
                await make_overlay(self._vms, self._overlays[disk.name], tree.top(disk))
            step.say(f"{len(self._disks)} new images are made")

    async def _remove_made(self) -> None:
        await clear_quietly(
            self._vm,
            self._vms.launcher,
            self._vms.kept,
            lambda text: self._job.log(text, "warning"),
        )

    # ---- while it runs -----------------------------------------------------------------------

    def _layer(self, disk: Disk) -> Layer:
        place = self._overlays[disk.name]
        return Layer(
            node=node_name(place.pool, place.volume),
            path=self._vms.launcher.pools.volume_path(place.pool, place.volume),
            format="qcow2",
        )

    async def _open(self) -> None:
        for disk in self._disks:
            await self._vm.blocks.add(nodes.image(self._layer(disk), backing=None))

    async def _take_back(self) -> None:
        """The disks as they were: the new images are merged down, or only closed."""
        vm = self._vm
        if any(one.id == self.checkpoint.id for one in vm.record.checkpoints):
            await vm.write(**tree.hidden(vm.record, {self.checkpoint.id}))
            await Merger(vm, self._vms.launcher, self._vms.kept, self._job).run()
        elif vm.monitor is not None:
            await self._close(vm.blocks)

    async def _close(self, blocks: Blocks) -> None:
        names = await blocks.names()
        for disk in self._disks:
            node = self._layer(disk).node
            await blocks.delete(*[one for one in (node, file_of(node)) if one in names])

    async def _with_memory(self, file: MemoryFile, undo: Undo) -> StateFile:
        vm, job = self._vm, self._job
        job.phase = Phase.MEMORY
        async with job.step("memory") as step:
            undo.push("let the guest go on", lambda: memory_file.end(vm))
            self._stopped = await file.fill(self._max_downtime_ms, job)
            with job.uncancellable():
                await self._stack()
                await file.finish()
                await vm.resume_as_recorded()
                self._pause_ms = round((clock.monotonic() - self._stopped) * 1000, 1)
            step.say(f"{vm.name} stood still for {format_duration(self._pause_ms / 1000)}")
        async with job.step("keep") as step:
            state = await file.seal()
            step.say(f"{format_size(state.size)} of memory are in {state.place}")
        return state

    async def _stack(self) -> None:
        """The record, then the disks. If QEMU says no, the record says again what it said."""
        vm, before = self._vm, self._vm.record
        tops = {name: Image(volume=place.volume) for name, place in self._overlays.items()}
        await vm.write(**tree.frozen(before, self.checkpoint, tops))
        if vm.process is None:
            return
        try:
            if tops:
                await vm.blocks.snapshot(
                    {
                        node_name(disk.pool, disk.volume): self._layer(disk).node
                        for disk in self._disks
                    }
                )
        except QMPError:
            await vm.write(spec=before.spec, checkpoints=before.checkpoints, at=before.at)
            raise

    async def _settle(self, state: StateFile | None) -> None:
        """All is there: the checkpoint with its memory; nothing is in the making any more."""
        vm = self._vm
        with self._job.uncancellable():
            if not any(one.id == self.checkpoint.id for one in vm.record.checkpoints):
                await self._stack()
            checkpoints = tuple(
                replace(one, memory=state) if one.id == self.checkpoint.id else one
                for one in vm.record.checkpoints
            )
            await vm.write(checkpoints=checkpoints, made=())

    def _report(self, state: StateFile | None) -> dict[str, Any]:
        text = f"checkpoint {self.checkpoint.name} of {self._vm.name} is made"
        if self._pause_ms is not None:
            text += f"; the pause was {format_duration(self._pause_ms / 1000)}"
        return {
            "text": text,
            "checkpoint": self.checkpoint.name,
            "id": self.checkpoint.id,
            "disks": len(self._disks),
            "memory_bytes": state.size if state else 0,
            "pause_ms": self._pause_ms,
        }
