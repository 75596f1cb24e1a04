"""Going back to a checkpoint: new, empty images over its own, and its memory if it has one.

Promises: all that can be checked is checked before the VM is touched; the checkpoint itself stays
as it is, for the next time. Going back is one write of the record: the new tops, and the
checkpoint's memory as the state that the VM goes on from. Before it all is as it was (but for a VM
that was cut off), after it the VM is at the checkpoint, whatever dies.
"""

from __future__ import annotations

from typing import Any

from sterna.checkpoint import tree
from sterna.checkpoint.create import make_overlay, new_volume
from sterna.checkpoint.merge import Merger
from sterna.errors import (
    AppliedButOff,
    CheckpointDamaged,
    MemoryForeign,
    SavedStateForeign,
    SternaError,
)
from sterna.model.disk import Checkpoint, Image, Volume
from sterna.model.move import Phase
from sterna.move.undo import Undo
from sterna.operations.runner import Job
from sterna.vms import saved
from sterna.vms.machine import VM
from sterna.vms.service import VMs


def require_loadable(vms: VMs, vm: VM, checkpoint: Checkpoint) -> None:
    """Its memory is of this host's kind, and of the VM as it is now. Raises SavedStateForeign, MemoryForeign."""
    state, launcher = checkpoint.memory, vms.launcher
    if state is not None and state.accel != launcher.accel:
        raise SavedStateForeign(
            what=f"the memory of checkpoint {checkpoint.name}",
            vm=vm.name,
            made=state.accel,
            here=launcher.accel,
            host=launcher.host,
            fix="or go back to its disks alone with --no-memory",
        )
    if state is not None and (now := saved.other_machine(state, vm.record.spec)):
        raise MemoryForeign(
            what=f"the memory of checkpoint {checkpoint.name}",
            vm=vm.name,
            made=" ".join(filter(None, (state.machine, state.cpu))),
            now=now,
            fix="Go back to its disks alone with --no-memory",
        )


async def require_sound(vms: VMs, vm: VM, checkpoint: Checkpoint) -> None:
    """Its memory is what was written. Raises CheckpointDamaged."""
    if checkpoint.memory is not None:
        path, reason = await saved.damage(checkpoint.memory, vms.launcher)
        if reason:
            raise CheckpointDamaged(
                vm=vm.name, checkpoint=checkpoint.name, path=path, reason=reason
            )


def identity(operation: str) -> str:
    """What the images that an operation goes back with have in their names."""
    return f"{operation[:8]}-back"


class Applying:
    """One VM going back, whose lease the caller holds."""

    def __init__(
        self, vms: VMs, vm: VM, job: Job, checkpoint: Checkpoint, *, with_memory: bool
    ) -> None:
        self._vms = vms
        self._vm = vm
        self._job = job
        self.undo = Undo(job)
        self._checkpoint = checkpoint
        self._memory = checkpoint.memory if with_memory else None
        self._was_running = vm.process is not None
        self._has_gone_back = False
        self._disks = [disk for disk in tree.writable(vm.record) if disk.name in checkpoint.images]
        self._overlays = {
            disk.name: new_volume(vm.name, disk, identity(job.id)) for disk in self._disks
        }

    async def run(self) -> dict[str, Any]:
        """The report of a success. Raises AppliedButOff if it could not be started from there."""
        vm, job, name = self._vm, self._job, self._checkpoint.name
        if self._memory is not None:
            async with job.step("check") as step:
                await require_sound(self._vms, vm, self._checkpoint)
                step.say("its memory is what was written")
        undo = self.undo
        async with undo:
            job.phase = Phase.DISKS
            async with job.step("disks") as step:
                undo.push("remove the files that were made", self._clear)
                await self._make_files()
                with job.uncancellable():
                    await vm.quit()
                    await vm.write(**self._gone_back())
                    self._has_gone_back = True
                    undo.dismiss()
                    await self._clear()
                step.say(f"the disks of {vm.name} are as they were at {name}")
        merger = Merger(vm, self._vms.launcher, self._vms.kept, job)
        await merger.drop()
        if self._memory is not None:
            await self._go_on()
        try:  # a deleted checkpoint may have waited for the branch that is gone now
            await merger.run()
        except SternaError as error:
            job.warn(f"images of deleted checkpoints are not merged yet: {error.message}")
        how = "runs on from" if vm.process is not None else "is off, at"
        return {
            "text": f"{vm.name} {how} checkpoint {name}",
            "checkpoint": name,
            "with_memory": self._memory is not None,
            "was_running": self._was_running,
            "runs": vm.process is not None,
        }

    @property
    def outcome(self) -> str:
        """Where the VM is now, for whom it went wrong."""
        vm = self._vm
        at = f"at {self._checkpoint.name}" if self._has_gone_back else "as before"
        cut = self._was_running and vm.process is None
        return f"{vm.name} is {at}" + (", but was cut off" if cut else "")

    async def _make_files(self) -> None:
        made = self._overlays.values()
        await self._vm.write(made=(*self._vm.record.made, *made))
        for disk in self._disks:
            below = self._checkpoint.images[disk.name]
            await make_overlay(self._vms, self._overlays[disk.name], below)

    def _gone_back(self) -> tree.Changes:
        record = self._vm.record
        tops = {name: Image(volume=place.volume) for name, place in self._overlays.items()}
        old = [Volume(pool=disk.pool, volume=disk.volume) for disk in self._disks]
        return {
            **tree.with_tops(record, tops),
            "at": self._checkpoint.id,
            "saved": self._memory,
            "leaving": (*record.leaving, *old, *saved.leaving_state(self._vm)),
            "made": (),
            "paused": False,
        }

    async def _clear(self) -> None:
        await saved.clear_quietly(
            self._vm,
            self._vms.launcher,
            self._vms.kept,
            lambda text: self._job.log(text, "warning"),
        )

    async def _go_on(self) -> None:
        self._job.phase = Phase.MEMORY
        try:
            async with self._job.step("memory") as step:
                launcher, kept = self._vms.launcher, self._vms.kept
                await saved.go_on(self._vm, launcher, kept, is_sound=True)
                step.say(f"{self._vm.name} goes on from {self._checkpoint.name}")
        except SternaError as error:
            raise AppliedButOff(
                vm=self._vm.name, checkpoint=self._checkpoint.name, reason=error.message
            ) from error
