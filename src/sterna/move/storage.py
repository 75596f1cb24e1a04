"""Disks to another pool of the same host, under a running VM or of one that is off."""

from __future__ import annotations

from typing import Any

from sterna.errors import StorageMoveFailed
from sterna.operations.runner import Job
from sterna.vms.machine import VM
from sterna.vms.mend import Mended


def settled(vm: VM, mended: Mended, job: Job) -> dict[str, Any]:
    """The end of a storage move that its daemon did not finish: what `mend` has found.

    Raises StorageMoveFailed if it was undone.
    """
    where = ", ".join(f"{disk.name} in {disk.pool}" for disk in vm.record.spec.disks)
    if mended.was_cut or not (mended.was_through or job.phase == "tidy"):
        raise StorageMoveFailed(
            vm=vm.name,
            phase=job.phase or "plan",
            reason=f"sternad ended in mid-move; its disks are where they were: {where}",
            fix="It may be tried again at any time",
        )
    return {"text": f"the disks of {vm.name} had moved when sternad restarted: {where}"}
