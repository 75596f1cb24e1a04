"""Saving a VM: its memory goes into a file and its QEMU ends; later it goes on from there.

The record names the saved state only when all of the file is on the disk, and before QEMU ends:
from then on no vCPU may run but from that file (see `sterna.vms.saved`). Until then whatever fails
is undone and the guest goes on.
"""

from __future__ import annotations

from typing import Any

from sterna import clock
from sterna.checkpoint import memory_file
from sterna.checkpoint.memory_file import MemoryFile
from sterna.model.move import Phase
from sterna.move.undo import Undo
from sterna.operations.runner import Job
from sterna.units import format_size
from sterna.vms.machine import VM
from sterna.vms.saved import clear_quietly
from sterna.vms.service import VMs

LAST_COPY_MS = 5000  # it stops for good anyway; rounds go on until the rest takes no longer


class Saving:
    """One VM being saved, whose lease the caller holds."""

    def __init__(self, vms: VMs, vm: VM, job: Job) -> None:
        self._vms = vms
        self._vm = vm
        self._job = job
        self.undo = Undo(job)
        self._file = MemoryFile(vm, vms.launcher, f"{vm.name}-{job.id[:8]}-saved")

    async def run(self) -> dict[str, Any]:
        """The report of a success: the VM is off."""
        vm, job, file = self._vm, self._job, self._file
        began = clock.monotonic()
        await file.require_room()
        undo = self.undo
        async with undo:
            undo.push("remove the files that were made", self._remove_made)
            await vm.write(made=(*vm.record.made, *file.volumes))
            job.phase = Phase.MEMORY
            async with job.step("memory") as step:
                undo.push("let the guest go on", lambda: memory_file.end(vm))
                await file.fill(LAST_COPY_MS, job)
                await file.finish()
                state = await file.seal()
                step.say(f"{format_size(state.size)} of memory are in {state.place}")
            with job.uncancellable():
                await vm.write(saved=state, made=())
                undo.dismiss()
                await vm.quit()
        return {
            "text": f"{vm.name} is saved and off; start it to go on: sterna vm start {vm.name}",
            "saved_bytes": state.size,
            "pool": state.pool,
            "volume": state.volume,
            "total_s": round(clock.monotonic() - began, 3),
        }

    async def _remove_made(self) -> None:
        await clear_quietly(
            self._vm,
            self._vms.launcher,
            self._vms.kept,
            lambda text: self._job.log(text, "warning"),
        )
