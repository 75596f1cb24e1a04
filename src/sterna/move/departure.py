"""What is left of a VM that is another host's now: its QEMU, its run folder, its files."""

from __future__ import annotations

import shutil

from sterna.errors import MoveLeftovers, SternaError
from sterna.move import handover
from sterna.operations.runner import Job
from sterna.vms.machine import VM
from sterna.vms.mend import clear_departed
from sterna.vms.service import VMs


async def tidy(vm: VM, vms: VMs, job: Job, *, has_failed: bool = False) -> None:
    """Write down that the VM is another host's, end its QEMU here, remove its files.

    Raises MoveLeftovers; if the move `has_failed` in a worse way, that is only a warning.
    """
    await handover.release(vm, job)
    try:
        await vm.quit()
        await remove_departed(vm, vms)
    except SternaError as error:
        left = left_behind(vm, vms.config.name, error)
        if not has_failed:
            raise left from error
        job.warn(left.message)
    else:
        shutil.rmtree(vm.paths.directory, ignore_errors=True)


async def remove_departed(vm: VM, vms: VMs) -> None:
    """The files that the target has now: removed, or kept under another name. May be repeated."""
    await clear_departed(vm, vms.launcher.pools, vms.kept)
    vms.launcher.remove_files(vm.record.spec)


def left_behind(vm: VM, host: str, error: SternaError) -> MoveLeftovers:
    """What the user should read when the VM has moved and `error` kept something of it here."""
    target = vm.record.ownership.peer
    return MoveLeftovers(
        vm=vm.name,
        target=target,
        outcome=f"is on {target}",
        leftovers=f"its QEMU or files on {host} ({error.message})",
        fix=f"Restart sternad on {host}: it clears them",
    )
