"""Ways out of a doubt: what is known, and the fence that an operator may declare.

The operator says that the target is off and stays off until it has been told; nobody else can know
that. Then the VM is taken back in an epoch above the one that was given away, durably, and the
target is told until it has answered that it owns it no more. What can be seen from here is checked
first: a target that answers is not off, and a VM that went on to a third host is not taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from sterna import clock
from sterna.errors import (
    FenceRefused,
    HostUnknown,
    HostUnreachable,
    NotInDoubt,
    SternaError,
    VMDamaged,
)
from sterna.model.doubt import Doubt, Way
from sterna.model.operation import Operation, OperationState
from sterna.model.vm import Fence, OwnershipState
from sterna.move import protocol
from sterna.move.incoming import Incoming
from sterna.move.peer import Peers
from sterna.operations.runner import Job
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.service import VMs

log = logging.getLogger(__name__)

TELL_S = 3.0  # between two attempts to tell a fenced host; it may be off for weeks


class Doubts:
    """The doubts of this host, and the fences that it declared or must obey."""

    def __init__(self, vms: VMs, peers: Peers, incoming: Incoming) -> None:
        self._vms = vms
        self._peers = peers
        self._incoming = incoming

    # ---- the source: explain and fence ------------------------------------------------------

    async def explain(self, operation: str) -> Doubt:
        """What is known, and the ways out. Raises OperationNotFound, NotInDoubt."""
        found = await self._vms.runner.get(operation)
        vm = self._doubtful(found)
        target, given = vm.record.ownership.peer, vm.record.ownership.epoch
        (blocker, says), others = await asyncio.gather(
            self._ask_target(vm), self._ask_others(vm, target)
        )
        blockers = [blocker, *(one for one, _ in others)]
        travelling = self._travelling(vm)
        return Doubt(
            operation=found.id,
            vm=vm.name,
            vm_id=vm.id,
            target=target,
            since=next((s.began for s in found.steps if s.name == "handover"), found.created),
            epoch=given,
            guest="paused" if vm.process is not None else "off",
            target_says=says,
            others=tuple(sentence for _, sentence in others),
            travelling=travelling,
            blocker=next((one for one in blockers if one), ""),
            ways=_ways(vm, target, travelling),
        )

    def _doubtful(self, operation: Operation) -> VM:
        vm = self._vms.by_id(operation.vm_id)
        if (
            operation.state is not OperationState.UNKNOWN
            or vm is None
            or vm.record.ownership.state is not OwnershipState.YIELDING
            or vm.record.ownership.operation != operation.id
        ):
            raise NotInDoubt(operation=operation.id, state=f"it is {operation.state}")
        return vm

    @staticmethod
    def _travelling(vm: VM) -> tuple[str, ...]:
        leaving = set(vm.record.departing)
        return tuple(
            disk.name
            for disk in vm.record.spec.disks
            if any(
                image.volume == file.volume and disk.pool == file.pool
                for image in chain.own_images(vm.record, disk)
                for file in leaving
            )
        )

    async def _ask_target(self, vm: VM) -> tuple[str, str]:
        """(why it cannot be fenced, what it says)."""
        target = vm.record.ownership.peer
        try:
            await self._peers.get(target).standing(vm.id)
        except (HostUnreachable, HostUnknown) as error:
            return "", error.message
        except SternaError as error:
            return f"{target} is not off: it says {error.message}", error.message
        return f"{target} is not off: it answers, and the move ends by itself", "it answers"

    async def _ask_others(self, vm: VM, target: str) -> list[tuple[str, str]]:
        """(why that host forbids a fence, one sentence) for each other host."""
        names = [name for name in self._peers.names if name != target]
        return await asyncio.gather(*(self._ask_other(vm, name) for name in names))

    async def _ask_other(self, vm: VM, name: str) -> tuple[str, str]:
        try:
            state, epoch = await self._peers.get(name).standing(vm.id)
        except SternaError as error:
            return "", (
                f"{name} could not be asked ({error.message}): "
                f"whoever fences declares that {vm.name} is not there either"
            )
        if protocol.blocks_fence(state, epoch, vm.record.ownership.epoch):
            reason = f"it went on to {name}, which says: {state}, epoch {epoch}"
            return reason, reason
        return "", f"{name} has not got it"

    async def fence(self, operation: str) -> Operation:
        """Take the VM back: the operator declares that the target is off.

        Returns at once, the operation ends as `warned`. Raises OperationNotFound, NotInDoubt,
        FenceRefused.
        """
        doubt = await self.explain(operation)
        if doubt.blocker:
            raise FenceRefused(
                vm=doubt.vm,
                reason=doubt.blocker,
                fix=f"Wait, or turn {doubt.target} off: sterna op resolve {operation}",
            )
        found = await self._vms.runner.get(operation)
        vm = self._doubtful(found)
        log.warning("%s is declared to be off: %s is taken back", doubt.target, doubt.vm)
        vm.declared.set()
        return found

    async def tell(self) -> None:
        """For ever: tell the hosts that were fenced, until each has answered."""
        while True:
            for vm in self._vms.all():
                for fence in vm.record.fenced:
                    await self._tell(vm, fence)
            await asyncio.sleep(TELL_S)

    async def _tell(self, vm: VM, fence: Fence) -> None:
        with contextlib.suppress(SternaError):  # it is off still, or cannot write: told again
            here = self._vms.config.name
            await self._peers.get(fence.peer).fenced(vm.id, fence.epoch, here)
            if self._vms.by_id(vm.id) is not vm:
                return  # it is coming back right now, with a record of its own: told again
            told = protocol.on_told(protocol.standing(vm.record), fence.peer, fence.epoch)
            await vm.write(fenced=told.fenced)
            log.info("%s knows that it does not own %s any more", fence.peer, vm.name)

    # ---- the other side -----------------------------------------------------------------------

    def standing(self, vm_id: str) -> tuple[str, int]:
        """(state, epoch) of the VM on this host; an empty state if it knows nothing of it."""
        self._require_readable(vm_id)
        vm = self._vms.by_id(vm_id)
        if vm is None:
            return "", 0
        return str(vm.record.ownership.state), vm.record.ownership.epoch

    async def fenced(self, vm_id: str, epoch: int, by: str) -> tuple[str, int]:
        """`by` took the VM back up to `epoch` while this host was off: let go of it, durably.

        Its files stay. May be repeated. Returns what this host knows then.
        """
        self._require_readable(vm_id)
        vm = self._vms.by_id(vm_id)
        if vm is None:
            return "", 0
        now = protocol.standing(vm.record)
        new = protocol.on_fenced(now, epoch)
        if new is not None and new != now:
            if new.state is OwnershipState.REFUSED:
                await self._incoming.drop(vm, f"{by} took it back")
            else:
                await self._let_go(vm, new, by)
        return self.standing(vm_id)

    async def _let_go(self, vm: VM, new: protocol.Standing, by: str) -> None:
        pools = self._vms.launcher.pools
        places = [
            str(pools.volume_path(file.pool, file.volume)) for file in chain.own_files(vm.record)
        ]
        where = f"; what was written here is in {', '.join(places)}" if places else ""
        note = f"{by} took it back in a newer epoch while this host was off{where}"
        await vm.write(
            **protocol.fields(new),
            departing=(),  # of a move that it had begun: nothing is removed here
            notes=(*vm.record.notes[-9:], f"{clock.now()} {note}"),
        )
        await vm.quit()
        await self._vms.kept.forsake(vm.id)

        async def work(job: Job) -> dict[str, Any]:
            job.warn(f"{vm.name} is not this host's any more: {note}")
            return {"from": self._vms.config.name, "to": by, "files": places}

        self._vms.runner.start(
            "fenced", vm=vm.name, vm_id=vm.id, work=work, peer=by, cancellable=False
        )

    def _require_readable(self, vm_id: str) -> None:
        for item in self._vms.damaged:
            if item.key == vm_id:
                raise VMDamaged(
                    vm=vm_id, host=self._vms.config.name, path=item.path, reason=item.reason
                )


def _ways(vm: VM, target: str, travelling: tuple[str, ...]) -> tuple[Way, ...]:
    apart = (
        f"what its guest wrote there to {', '.join(travelling)} since the handover, which is on the "
        f"disks of {target} only; "
        if travelling
        else ""
    )
    goes_on = (
        "it goes on here where it was paused, unless its shared disks were written to since: then its "
        "memory is older than they are, and it must boot"
        if vm.process is not None
        else "it is off here, and can be started"
    )
    return (
        Way(
            name="wait",
            what=f"This host keeps asking {target}, by itself and after a restart of either. When "
            "it answers, the move ends: either it had taken the VM, or the VM goes on here",
            loses="nothing but time",
        ),
        Way(
            name="fence",
            what=f"Turn {target} off (its power, not sternad alone), make sure that it stays off "
            f"until it can hear this host again, then say so with --fenced: {goes_on}",
            loses=f"{apart}what the guest did on {target} after it had taken over, if it had. If "
            f"{target} is not off, the VM runs twice",
        ),
    )
