"""What became of an operation of ours that its daemon did not finish: told by the record.

`Recovery` has brought VM and record to rights by then (see `sterna.vms.mend`): new images that the
record names are on top, files in the making are gone, a QEMU beside a saved state has been ended.
The first eight digits of an operation are in the names of all that it makes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sterna.checkpoint import tree
from sterna.checkpoint.apply import identity
from sterna.checkpoint.service import RETRY, Checkpoints
from sterna.errors import (
    AppliedButOff,
    ApplyFailed,
    CheckpointFailed,
    CheckpointWithoutMemory,
    RestoreFailed,
    SaveFailed,
    VMNotFound,
)
from sterna.model.operation import Operation
from sterna.operations.runner import Job
from sterna.vms.machine import VM
from sterna.vms.service import VMs

Work = Callable[[Job], Awaitable[dict[str, Any]]]
ENDED = "sternad ended meanwhile"


def settlers(vms: VMs, checkpoints: Checkpoints) -> Mapping[str, Callable[[Operation], Work]]:
    """How an unfinished operation of each kind is ended."""
    kinds: dict[str, Callable[[VM, Operation, Job], Awaitable[dict[str, Any]]]] = {
        "checkpoint": _checkpoint,
        "apply": _apply,
        "save": _save,
        "restore": _restore,
    }

    def settler(kind: str) -> Callable[[Operation], Work]:
        def work_for(operation: Operation) -> Work:
            async def work(job: Job) -> dict[str, Any]:
                vm = vms.by_id(operation.vm_id)
                if vm is None or not vm.is_here:
                    raise VMNotFound(vm=operation.vm, host=vms.config.name)
                if kind == "merge":
                    with vm.lease("deleted checkpoints are being merged", job.id):
                        job.log("sternad restarted; merging goes on")
                        return await checkpoints.merge(vm, job, "what was deleted")
                return await kinds[kind](vm, operation, job)

            return work

        return work_for

    return {kind: settler(kind) for kind in (*kinds, "merge")}


async def _checkpoint(vm: VM, operation: Operation, job: Job) -> dict[str, Any]:
    made = operation.id[:8]
    found = next((one for one in tree.visible(vm.record) if one.id == made), None)
    if found is None:
        raise CheckpointFailed(vm=vm.name, checkpoint=made, reason=ENDED, fix=RETRY)
    wanted_memory = any(step.name == "memory" for step in operation.steps)
    if wanted_memory and found.memory is None:
        raise CheckpointWithoutMemory(vm=vm.name, checkpoint=found.name, reason=ENDED)
    job.log(f"sternad restarted; {found.name} had been made")
    return {"checkpoint": found.name, "id": found.id}


async def _apply(vm: VM, operation: Operation, job: Job) -> dict[str, Any]:
    went = any(f".{identity(operation.id)}." in disk.volume for disk in vm.record.spec.disks)
    at = tree.shown_parent(vm.record, vm.record.at)
    name = at.name if at else "?"
    if not went:
        raise ApplyFailed(
            vm=vm.name,
            checkpoint="asked for",
            outcome=f"{vm.name} is as before, and {vm.state}",
            reason=ENDED,
            fix=RETRY,
        )
    if vm.record.saved is not None:
        raise AppliedButOff(vm=vm.name, checkpoint=name, reason=ENDED)
    job.log(f"sternad restarted; {vm.name} is at {name}")
    return {"checkpoint": name, "runs": vm.process is not None}


async def _save(vm: VM, operation: Operation, job: Job) -> dict[str, Any]:
    state = vm.record.saved
    if state is None or operation.id[:8] not in state.volume:
        raise SaveFailed(vm=vm.name, reason=ENDED, fix=RETRY)
    job.log(f"sternad restarted; {vm.name} had been saved")
    return {"saved_bytes": state.size, "pool": state.pool, "volume": state.volume}


async def _restore(vm: VM, _operation: Operation, job: Job) -> dict[str, Any]:
    if vm.record.saved is not None:
        raise RestoreFailed(vm=vm.name, reason=ENDED)
    job.log(f"sternad restarted; {vm.name} is {vm.state}")
    return {"text": f"{vm.name} is {vm.state}"}
