"""After a restart: every VM is brought back to what its record says, every unfinished move ended.

The record rules, not the journal: the journal only tells the story. Called once, before the API
answers. What each record means when the daemon finds it:

    owned, QEMU alive          manage it again; if a move away had begun, take it back
    owned, QEMU gone           it is off; if it was to run, say so in its notes
    yielding                   in doubt: ask the target until it answers
    released, QEMU alive       the target has it: end the QEMU here
    reserved                   refuse, durably, and remove its QEMU
    refused                    remove what is left of it
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from sterna import clock
from sterna.errors import (
    Failed,
    Fenced,
    HandoverFailed,
    MemoryLost,
    MoveFailed,
    MoveLeftovers,
    QEMULost,
    QMPTimeout,
    SternaError,
    VMLost,
    VMWrongState,
)
from sterna.model.move import Phase
from sterna.model.operation import Operation
from sterna.model.vm import OwnershipState
from sterna.move import departure, handover, memory, postcopy, protocol
from sterna.move.carriage import IN_KEY, forget_key, remove_keys
from sterna.move.incoming import Incoming
from sterna.move.landing import remove_words
from sterna.move.peer import Peers
from sterna.move.storage.engine import settled
from sterna.operations.runner import Job
from sterna.qemu.process import Process, find
from sterna.qemu.sockets import cut_connections
from sterna.vms.machine import VM
from sterna.vms.mend import Mended, mend_quietly
from sterna.vms.service import VMs

log = logging.getLogger(__name__)


class Recovery:
    """Settles what a former life of this daemon left open."""

    def __init__(
        self,
        vms: VMs,
        peers: Peers,
        incoming: Incoming,
        settlers: Mapping[str, Callable[[Operation], Any]] | None = None,
    ) -> None:
        """`settlers`: by the kind of operation, the work that ends one of a former life."""
        self._vms = vms
        self._peers = peers
        self._incoming = incoming
        self._settlers = settlers or {}
        self._open: dict[str, Operation] = {}

    async def run(self) -> None:
        """Returns when all VMs are managed; doubts are asked about in the background."""
        self._open = {operation.id: operation for operation in await self._vms.runner.unfinished()}
        vms = self._vms.load()
        self._vms.kept.load()
        await self._end_strays()
        remove_words(self._vms.config)
        for vm in vms:
            try:
                await self._recover(vm)
            except Exception as error:  # one VM's trouble is not another's
                log.exception("VM %s could not be recovered", vm.name)
                await self._note(vm, f"after a restart: {error}")
        for operation in self._open.values():
            self._settle_rest(operation)

    async def _recover(self, vm: VM) -> None:
        await self._adopt(vm)
        match vm.record.ownership.state:
            case OwnershipState.OWNED:
                await self._owned(vm)
            case OwnershipState.YIELDING:
                self._resolve(vm)
            case OwnershipState.RELEASED:
                await self._released(vm)
            case OwnershipState.RESERVED | OwnershipState.REFUSED:
                await self._refused(vm)

    async def _adopt(self, vm: VM) -> None:
        """Find the VM's QEMU again, if it lives."""
        identity = vm.record.process
        if identity is None:
            return
        process = Process.adopt(identity)
        if process is None:
            await vm.write(process=None)
            await self._note(vm, "its QEMU had ended when sternad started")
            return
        try:
            try:
                await vm.attach(process, self._vms.runner)
            except QMPTimeout:  # its main loop hangs on a frozen target: nobody else is let in
                log.warning("QEMU of %s hangs on its migration; cutting that", vm.name)
                await asyncio.to_thread(cut_connections, identity.pid)
                await vm.attach(process, self._vms.runner)
        except SternaError as error:
            if process.is_alive:
                vm.hold(process, self._vms.runner)
                await self._note(vm, f"its QEMU (pid {identity.pid}) does not answer: {error}")
            else:
                await vm.write(process=None)

    # ---- one state each --------------------------------------------------------------------

    async def _owned(self, vm: VM) -> None:
        if vm.record.saved is not None and vm.process is not None:
            await vm.quit()  # it was being saved or restored: its guest has not run since
        moving = vm.record.moving
        operation = moving or vm.record.ownership.operation
        if not moving and await postcopy.sends(vm):
            await self._arriving(vm, operation)
            return
        await self._stop_sending(vm)
        remove_keys(vm)
        mended = await mend_quietly(vm, self._vms.launcher.pools, self._vms.kept)
        if mended.problem:
            await self._note(vm, f"could not be cleared up: {mended.problem}")
        if vm.monitor is not None:
            await vm.resume_as_recorded()
        if moving:
            over = protocol.on_restart(protocol.standing(vm.record))
            await vm.write(**protocol.fields(over), departing=())
            await self._vms.kept.forsake(vm.id)
            self._vms.runner.background(
                self._free_target(vm, self._peer_of(moving), moving), f"free the target of {moving}"
            )
            self._settle(
                moving,
                MoveFailed(
                    vm=vm.name,
                    target=self._peer_of(moving),
                    phase=self._phase_of(moving),
                    reason=f"sternad on {self._vms.config.name} ended in mid-move",
                    fix="It may be tried again at any time",
                ),
            )
        elif operation in self._open:
            await self._taken_before_restart(vm, operation)
        self._storage_move_cut(vm, mended)

    @staticmethod
    async def _stop_sending(vm: VM) -> None:
        """Nothing of a move goes on without us, and what hangs on its target is freed."""
        moving = vm.record.moving
        if await postcopy.sends(vm):  # before anything is cut: QEMU would keep the guest then
            await postcopy.take_back(vm)
        elif moving and vm.process is not None:
            await asyncio.to_thread(cut_connections, vm.process.pid)
        if vm.monitor is not None:
            status = (await vm.monitor.query_migrate()).status
            if moving or status not in memory.ENDED | {"none", ""}:
                await memory.abort(vm.monitor)

    async def _arriving(self, vm: VM, operation: str) -> None:
        """It runs here, and a part of its memory is on its way still."""
        found, source = self._open.get(operation), vm.record.ownership.peer

        async def work(job: Job) -> dict[str, Any]:
            job.log(f"sternad restarted; {vm.name} runs here, its memory follows")
            with vm.lease("receiving the rest of its memory", job.id):
                await postcopy.arrive(vm, source)
            await forget_key(vm, IN_KEY)
            return {"from": source, "to": self._vms.config.name}

        await vm.resume_as_recorded()
        if found is not None and found.kind == "receive":
            self._resume(operation, work)
        else:
            self._vms.runner.start(
                "receive", vm=vm.name, vm_id=vm.id, work=work, peer=source, cancellable=False
            )

    def _storage_move_cut(self, vm: VM, mended: Mended) -> None:
        """A move of its disks within this host that was under way: it is through, or undone."""
        for found in list(self._open.values()):
            if found.kind == "storage-move" and found.vm_id == vm.id:

                async def work(job: Job) -> dict[str, Any]:
                    return settled(vm, mended, job)

                self._resume(found.id, work)

    async def _taken_before_restart(self, vm: VM, operation: str) -> None:
        """This host took the VM, and died before it could say so in its journal."""
        found = self._open[operation]
        if found.kind == "receive":

            async def work(job: Job) -> dict[str, Any]:
                if vm.monitor is not None and vm.record.spec.nics:
                    with contextlib.suppress(SternaError):
                        await vm.monitor.announce_self()
                job.log(f"sternad restarted; {vm.name} had been taken over and runs here")
                return {"from": found.peer, "to": self._vms.config.name}

            self._resume(operation, work)
        else:  # a handover that its target refused, just before the end
            self._settle(
                operation,
                MoveFailed(
                    vm=vm.name,
                    target=found.peer,
                    phase=found.phase,
                    reason=f"{found.peer} did not take it, and sternad ended meanwhile",
                    fix="It may be tried again at any time",
                ),
            )

    def _resolve(self, vm: VM) -> None:
        """In doubt: the operation goes on until the target has answered."""
        operation, target = vm.record.ownership.operation, vm.record.ownership.peer
        vm.doing, vm.operation = f"in doubt: {target} may own it", operation

        async def work(job: Job) -> dict[str, Any]:
            job.log(f"sternad restarted; asking {target} whether it has taken {vm.name}")
            try:
                with job.uncancellable():
                    pools = self._vms.launcher.pools
                    await handover.resolve(vm, lambda: self._peers.get(target), job, pools)
                    lost = await self._rest_of(vm, job)
                    await departure.tidy(vm, self._vms, job, has_failed=lost is not None)
                    if lost is not None:
                        raise lost
            except HandoverFailed as error:
                await self._go_on(vm)
                if isinstance(error, Fenced):
                    job.warn(error.message)
                    return handover.fenced_report(self._vms.config.name, error)
                raise MoveFailed(
                    vm=vm.name,
                    target=target,
                    phase="handover",
                    reason=error.message,
                    fix="It may be tried again at any time",
                ) from error
            finally:
                vm.doing, vm.operation = "", ""
            return {
                "from": self._vms.config.name,
                "to": target,
                "text": f"{target} had taken {vm.name} when sternad restarted",
            }

        if operation in self._open:
            self._resume(operation, work)
        else:
            self._vms.runner.start(
                "move", vm=vm.name, vm_id=vm.id, work=work, peer=target, id=operation
            )

    async def _rest_of(self, vm: VM, job: Job) -> MemoryLost | None:
        """The target has taken it; in post-copy it lacks memory that our QEMU has."""
        if await postcopy.sends(vm):
            job.phase = Phase.POSTCOPY
            target = vm.record.ownership.peer
            await handover.release(vm, job)
            try:
                await self._sender(vm, target, job).run()
            except MemoryLost as error:
                return error
        return None

    def _sender(self, vm: VM, target: str, job: Job) -> postcopy.Sender:
        return postcopy.Sender(vm, lambda: self._peers.get(target), job)

    async def _go_on(self, vm: VM) -> None:
        """It is owned here again; it is off if its QEMU has ended meanwhile."""
        if await postcopy.sends(vm):
            await postcopy.take_back(vm)
        with contextlib.suppress(VMLost, QEMULost):
            await vm.resume_as_recorded()
        await vm.write(
            **protocol.fields(protocol.give_up(protocol.standing(vm.record))), departing=()
        )
        await self._vms.kept.forsake(vm.id)

    async def _released(self, vm: VM) -> None:
        target, operation = vm.record.ownership.peer, vm.record.ownership.operation
        found = self._open.get(operation)
        was_postcopy = found is not None and found.phase == Phase.POSTCOPY
        if await postcopy.sends(vm) or (was_postcopy and vm.process is None):
            self._follow(vm)
            return
        if vm.process is not None:
            await vm.quit()
        left: MoveLeftovers | None = None
        try:
            await departure.remove_departed(vm, self._vms)
        except SternaError as error:  # such as a pool that is away: the move has succeeded still
            left = departure.left_behind(vm, self._vms.config.name, error)
            log.warning("%s", left.message)
        if operation in self._open:

            async def work(job: Job) -> dict[str, Any]:
                job.log(f"sternad restarted; {target} had taken {vm.name}")
                if left is not None:
                    raise left
                return {"from": self._vms.config.name, "to": target}

            self._resume(operation, work)

    def _follow(self, vm: VM) -> None:
        """Its guest runs on the target, which lacks pages that our QEMU has, or had."""
        target, operation = vm.record.ownership.peer, vm.record.ownership.operation
        vm.doing, vm.operation = f"sending memory to {target}", operation

        async def work(job: Job) -> dict[str, Any]:
            has_failed = False
            job.log(
                f"sternad restarted; the rest of the memory of {vm.name} follows it to {target}"
            )
            try:
                with job.uncancellable():
                    job.phase = Phase.POSTCOPY
                    sender = self._sender(vm, target, job)
                    if vm.process is None:
                        raise await sender.tell_lost()
                    await sender.run()
            except MemoryLost:
                has_failed = True
                raise
            finally:
                vm.doing, vm.operation = "", ""
                if job.stopped_by != "shutdown":
                    await departure.tidy(vm, self._vms, job, has_failed=has_failed)
            return {"from": self._vms.config.name, "to": target}

        if operation in self._open:
            self._resume(operation, work)
        else:
            self._vms.runner.start(
                "move", vm=vm.name, vm_id=vm.id, work=work, peer=target, id=operation
            )

    async def _refused(self, vm: VM) -> None:
        ownership = vm.record.ownership
        if ownership.state is OwnershipState.RESERVED:
            refused = protocol.on_restart(protocol.standing(vm.record))
            await vm.write(**protocol.fields(refused))
            self._settle(
                ownership.operation,
                Failed(
                    detail=f"sternad ended while {vm.name} was on its way here; it stays on "
                    f"{ownership.peer}"
                ),
            )
        await self._incoming.clear(vm)

    # ---- the rest --------------------------------------------------------------------------

    async def _free_target(self, vm: VM, target: str, operation: str) -> None:
        """Tell the target at once; if it cannot be told, its lease ends by itself."""
        with contextlib.suppress(SternaError):
            await self._peers.get(target).refuse(operation, vm.id, vm.record.ownership.epoch + 1)

    def _peer_of(self, operation: str) -> str:
        found = self._open.get(operation)
        return found.peer if found else "its target"

    def _phase_of(self, operation: str) -> str:
        found = self._open.get(operation)
        return found.phase if found else "unknown"

    async def _end_strays(self) -> None:
        """A QEMU that no record names: its daemon died between starting it and writing it down.

        The record is durable before vCPUs may run, so it never ran one. A damaged record may name
        one: that is left alone.
        """
        named = {vm.id: vm.record.process for vm in self._vms.all()}
        damaged = {item.key for item in self._vms.damaged}
        found = await asyncio.to_thread(find, self._vms.config.run_dir / "vms")
        for pid, vm_id in found.items():
            process = named.get(vm_id)
            if vm_id in damaged or (process is not None and process.pid == pid):
                continue
            log.warning("ending a QEMU (pid %d) that no record names, of %s", pid, vm_id)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _note(self, vm: VM, text: str) -> None:
        with contextlib.suppress(SternaError):
            await vm.write(notes=(*vm.record.notes[-9:], f"{clock.now()} {text}"))

    def _settle(self, operation: str, error: SternaError) -> None:
        """End an operation of a former life with `error`."""

        async def work(_job: Job) -> dict[str, Any]:
            raise error

        self._resume(operation, work)

    def _resume(self, operation: str, work: Any) -> None:
        if (found := self._open.pop(operation, None)) is not None:
            self._vms.runner.resume(found, work)

    def _settle_rest(self, operation: Operation) -> None:
        """An operation whose VM tells nothing about it: it was undone, or never began."""
        if settler := self._settlers.get(operation.kind):
            self._vms.runner.resume(operation, settler(operation))
            return

        async def work(_job: Job) -> dict[str, Any]:
            if operation.kind == "move":
                raise MoveFailed(
                    vm=operation.vm,
                    target=operation.peer,
                    phase=operation.phase,
                    reason=f"sternad on {self._vms.config.name} was stopped in mid-move",
                    fix="It may be tried again at any time",
                )
            raise VMWrongState(
                action=operation.kind,
                vm=operation.vm,
                state="in the state it was in when sternad ended, which nobody watched since",
                fix=f"Look at it: sterna vm show {operation.vm}",
            )

        self._vms.runner.resume(operation, work)
