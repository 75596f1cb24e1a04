"""What is left of a VM that is another host's now: its QEMU, its run folder, its files."""

from __future__ import annotations

import shutil

from sterna.move import handover
from sterna.operations.runner import Job
from sterna.vms.machine import VM
from sterna.vms.service import VMs


async def tidy(vm: VM, vms: VMs, job: Job) -> None:
    """Write down that the VM is another host's, end its QEMU here, remove its files."""
    await handover.release(vm, job)
    await vm.quit()
    await remove_departed(vm, vms)
    shutil.rmtree(vm.paths.directory, ignore_errors=True)


async def remove_departed(vm: VM, vms: VMs) -> None:
    """The files that the target has now: removed, or kept under another name. May be repeated."""
    if vm.record.departing:
        await vms.kept.clear(vm.id, vm.record.departing)
        await vm.write(departing=())
    vms.launcher.remove_files(vm.record.spec)
