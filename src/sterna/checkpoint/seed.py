"""Moves whose disks are sown first: what they hold is frozen, so that it can travel as files.

A new, empty image is put on each disk; all below it is read-only from then on and goes in hashed,
compressed chunks that outlive a failure, so that the next try goes on where this one ended. Only
what the guest writes meanwhile is mirrored. Afterwards each disk is made one image again while its
guest writes on: on the target after a success, here after a failure.

The frozen images are those of a hidden checkpoint, so that a crash at any moment leaves a VM with a
right view of its disks, and one that was not made whole is found by its name at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from sterna.checkpoint.service import Checkpoints
from sterna.errors import Stopping
from sterna.model.disk import Checkpoint
from sterna.model.vm import OwnershipState, VMRecord
from sterna.operations.runner import Job
from sterna.vms.machine import VM
from sterna.vms.service import VMs

BUSY_S = 0.5  # between looks at a VM that something else is done with
_NAME = re.compile(r"move-[0-9a-f]{8}")


class Seeds:
    """All of this host's VMs."""

    def __init__(self, vms: VMs, checkpoints: Checkpoints) -> None:
        self._vms = vms
        self._checkpoints = checkpoints

    async def sow(self, vm: VM, job: Job) -> None:
        """Freeze what the disks of a running VM hold now; the caller holds the lease.

        Raises what a checkpoint of disks can fail with; then nothing has changed.
        """
        await self._checkpoints.freeze(vm, job, f"move-{job.id[:8]}", hidden=True)

    def make_whole(self, vm: VM) -> None:
        """Begin an operation that merges what was frozen, if anything is; it waits for its turn."""
        active = self._vms.runner.active(vm.id)
        if not _sown(vm.record) or any(one.kind == "merge" for one in active):
            return

        async def work(job: Job) -> dict[str, Any]:
            while vm.doing:  # noqa: ASYNC110 - many things, without an event for all
                await asyncio.sleep(BUSY_S)
            sown = _sown(vm.record)
            if not sown:
                return {"text": f"the disks of {vm.name} are whole, or it is elsewhere"}
            with vm.lease("its disks are made whole again after a move", job.id):
                done = await self._checkpoints.merge(vm, job, sown[0].name)
            return done | {
                "text": f"the disks of {vm.name} are whole again; "
                f"images merged: {done['images_merged']}"
            }

        with contextlib.suppress(Stopping):  # the next start sweeps
            self._vms.runner.start("merge", vm=vm.name, vm_id=vm.id, work=work)

    async def sweep(self) -> None:
        """At the start: those whose daemon ended before they were whole."""
        for vm in self._vms.all():
            self.make_whole(vm)


def _sown(record: VMRecord) -> list[Checkpoint]:
    if record.ownership.state is not OwnershipState.OWNED:
        return []
    return [one for one in record.checkpoints if one.hidden and _NAME.fullmatch(one.name)]
