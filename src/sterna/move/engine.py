"""A move as its source drives it: plan, reserve, memory, handover, tidy.

Each step registers its undo before its effect; whatever fails before the VM is yielded is taken
back and the guest goes on here. From then on `handover` rules.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

from sterna import clock
from sterna.errors import (
    Cancelled,
    HostUnreachable,
    MoveCancelled,
    MoveFailed,
    MoveLeftovers,
    MoveUnknown,
    QEMULost,
    SternaError,
    TargetLost,
    VMLost,
)
from sterna.model.host import HostFacts
from sterna.model.move import MemoryProgress, MoveWishes, Phase
from sterna.model.operation import Operation
from sterna.model.reservation import Reservation, ReservationStatus
from sterna.model.vm import OwnershipState
from sterna.move import capabilities, checks, handover, memory
from sterna.move.peer import Peer, Peers
from sterna.move.report import Report
from sterna.move.undo import Undo
from sterna.move.watch import Watch
from sterna.operations.runner import Job
from sterna.vms.machine import QUIT_TIMEOUT_S, VM
from sterna.vms.service import VMs

SWITCH_OVER_S = 10.0  # device state of the largest guests takes a second


class Moves:
    """All moves away from this host."""

    def __init__(self, vms: VMs, peers: Peers, gather: Callable[[], Awaitable[HostFacts]]) -> None:
        self._vms = vms
        self._peers = peers
        self._gather = gather

    async def begin(self, ref: str, wishes: MoveWishes) -> Operation:
        """Plan the move of a VM and start it as an operation.

        Raises, with nothing changed: VMNotFound, VMBusy, HostUnknown, HostUnreachable, MoveRefused.
        """
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with vm.lease(f"a move to {wishes.target} is being planned"):
            peer, warnings = await self._plan(vm, wishes)

        async def work(job: Job) -> dict[str, Any]:
            with vm.lease(f"moving to {wishes.target}", job.id):
                move = Move(vm, peer, wishes, job, self._vms)
                for warning in warnings:
                    job.warn(warning)
                return await move.run()

        return self._vms.runner.start(
            "move", vm=vm.name, vm_id=vm.id, work=work, peer=wishes.target
        )

    async def _plan(self, vm: VM, wishes: MoveWishes) -> tuple[Peer, list[str]]:
        source = await self._gather()
        if wishes.target == source.name:
            target, peer = source, None
        else:
            peer = self._peers.get(wishes.target)
            target = await peer.facts()
        info = await vm.qmp.query_migrate() if vm.process is not None else None
        process = vm.record.process
        found = checks.require(
            checks.Question(
                spec=vm.record.spec,
                state=vm.state,
                accel=process.accel if process else "",
                blocked=tuple(info.blocked_reasons) if info else (),
                source=source,
                target=target,
                wishes=wishes,
            )
        )
        if peer is None:  # `same_host` refuses; this is for the type checker and for ever
            raise AssertionError
        return peer, [finding.finding for finding in found]


class Move:
    """One move of one VM."""

    def __init__(self, vm: VM, peer: Peer, wishes: MoveWishes, job: Job, vms: VMs) -> None:
        self.vm = vm
        self.peer = peer
        self.wishes = wishes
        self.job = job
        self.vms = vms
        self.is_live = vm.process is not None
        self._said = ""  # last words of the target's QEMU
        self.report = Report(source=vms.config.name, target=peer.name, is_live=self.is_live)

    async def run(self) -> dict[str, Any]:
        """The report of a success. Raises MoveFailed, MoveCancelled, MoveLeftovers."""
        undo = Undo(self.job)
        try:
            async with undo:
                reservation = await self._reserve(undo)
                if self.is_live:
                    await self._memory(undo, reservation)
                await self._hand_over(undo)
        except BaseException as error:
            self._explain(error, undo)
            raise
        return self.report.finish()

    def _explain(self, error: BaseException, undo: Undo) -> None:
        """Raise what the user should read instead of `error`."""
        error = _first(error)
        names = {"vm": self.vm.name, "target": self.peer.name}
        if self.vm.record.ownership.state is OwnershipState.YIELDING:
            raise MoveUnknown(**names, operation=self.job.id) from error
        if self.vm.record.ownership.state is OwnershipState.RELEASED:
            raise MoveLeftovers(
                **names,
                outcome=f"runs on {self.peer.name}",
                leftovers=f"its QEMU or files on {self.vms.config.name} ({error})",
                fix=f"Restart sternad on {self.vms.config.name}: it clears them",
            ) from error
        if undo.leftovers:
            raise MoveLeftovers(
                **names,
                outcome=f"stays on {self.vms.config.name}",
                leftovers="; ".join(undo.leftovers),
                fix=f"{self.peer.name} clears a reservation by itself when it hears nothing for a while",
            ) from error
        if isinstance(error, (asyncio.CancelledError, Cancelled)):
            if self.job.stopped_by == "user":
                raise MoveCancelled(**names, phase=self.job.phase) from error
            return
        if isinstance(error, SternaError):
            raise MoveFailed(
                **names,
                phase=self.job.phase,
                reason=error.message + self._words_of_target(error),
                fix=error.advice or "It may be tried again at any time",
            ) from error

    def _words_of_target(self, error: SternaError) -> str:
        """The target's QEMU knows best why it did not take the stream."""
        if not self._said or isinstance(error, TargetLost):
            return ""
        return f"; the QEMU of {self.peer.name} said: {self._said}"

    # ---- phases ----------------------------------------------------------------------------

    async def _reserve(self, undo: Undo) -> ReservationStatus:
        self.job.phase = Phase.RESERVE
        vm, record = self.vm, self.vm.record
        epoch = record.ownership.epoch + 1
        async with self.job.step("reserve") as step, self.report.phase(Phase.RESERVE):
            undo.push("clear the mark of the move", lambda: vm.write(moving=""))
            await vm.write(moving=self.job.id)
            undo.push(f"tell {self.peer.name} to drop its reservation", lambda: self._refuse(epoch))
            nvram = self.vms.launcher.nvram(vm.id)
            answer = await self.peer.reserve(
                Reservation(
                    operation=self.job.id,
                    epoch=epoch,
                    source=self.vms.config.name,
                    spec=record.spec,
                    live=self.is_live,
                    paused=record.paused,
                    accel=record.process.accel if record.process else "",
                    nvram=base64.b64encode(nvram.read_bytes()).decode() if nvram.exists() else "",
                    created=record.created,
                    notes=record.notes,
                )
            )
            step.say(f"{self.peer.name} holds memory, switches and the name for {vm.name}")
        return answer

    async def _refuse(self, epoch: int) -> None:
        """A target that cannot be told drops its reservation by itself: it hears no more of us."""
        try:
            answer = await self.peer.refuse(self.job.id, self.vm.id, epoch)
            self._said = answer.said
        except HostUnreachable as error:
            self.job.log(f"{error.message}; it drops its reservation by itself", level="warning")

    async def _memory(self, undo: Undo, reservation: ReservationStatus) -> None:
        self.job.phase = Phase.MEMORY
        vm, watch = self.vm, Watch(self.peer, self.job.id)
        caps = capabilities.settings(
            capabilities.SOURCE,
            self.vms.launcher.capabilities.migration_capabilities,
            self.vms.config.name,
        )
        async with self.job.step("memory") as step, self.report.phase(Phase.MEMORY):
            undo.push("continue the guest", lambda: self._if_alive(vm.resume_as_recorded))
            undo.push(
                "end the migration of its memory",
                lambda: self._if_alive(lambda: memory.abort(vm.qmp)),
            )
            await memory.prepare(vm.qmp, self.wishes, dict(caps))
            await self._precopy(reservation, watch)
            step.say(self.report.memory_sentence())

    async def _if_alive(self, step: Callable[[], Awaitable[object]]) -> None:
        """An undo of something that ends with its QEMU by itself: the VM is off then, here."""
        try:
            await step()
        except (QEMULost, VMLost):
            async with asyncio.timeout(QUIT_TIMEOUT_S):
                await self.vm.ended.wait()

    async def _precopy(self, reservation: ReservationStatus, watch: Watch) -> None:
        """Until the guest is stopped, with a target that answered a moment ago."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch.run())
            state = await memory.precopy(
                self.vm.qmp,
                f"tcp:{_bracketed(reservation.address)}:{reservation.port}",
                self.wishes,
                self._progress,
            )
            watching.cancel()
        self.report.stopped = state.stopped or clock.monotonic()
        if not watch.is_fresh:
            await watch.ask()

    async def _hand_over(self, undo: Undo) -> None:
        """Cannot be cancelled once begun; a shutdown waits for it."""
        vm = self.vm
        with self.job.uncancellable():
            self.job.phase = Phase.HANDOVER
            async with self.job.step("handover") as step, self.report.phase(Phase.HANDOVER):
                if self.is_live:
                    await self._last_copy()
                try:
                    answer = await handover.give(vm, self.peer, self.job)
                finally:
                    if vm.record.ownership.state is not OwnershipState.OWNED:
                        undo.dismiss()  # from here on only the target's answer decides
                self.report.taken(answer)
                if self.is_live:
                    with contextlib.suppress(SternaError):  # figures are never worth an error
                        self.report.migrated(await memory.figures(vm.qmp))
                for warning in answer.warnings:
                    self.job.warn(warning)
                step.say(self.report.pause_sentence(vm.name))
            self.job.phase = Phase.TIDY
            async with self.job.step("tidy") as step, self.report.phase(Phase.TIDY):
                await tidy(vm, self.vms, self.job)
                step.say(f"nothing of {vm.name} is left on {self.vms.config.name}")

    async def _last_copy(self) -> None:
        vm = self.vm
        with self.report.part("last_copy"):
            await asyncio.gather(
                memory.switch_over(vm.qmp, SWITCH_OVER_S), self._forget_addresses()
            )

    async def _forget_addresses(self) -> None:
        """Frames for the VM leave this host from now on, before its target announces it."""
        launcher = self.vms.launcher
        for nic in self.vm.record.spec.nics:
            try:
                await launcher.network.forget(launcher.switches.get(nic.switch), nic.mac)
            except Exception as error:  # noqa: BLE001 - never worth a move
                self.job.warn(f"traffic may need seconds to follow {self.vm.name}: {error}")

    def _progress(self, sample: MemoryProgress) -> None:
        self.job.sample(sample)


async def tidy(vm: VM, vms: VMs, job: Job) -> None:
    """Write down that the VM is another host's, end its QEMU here, remove its files."""
    await handover.release(vm, job)
    vms.launcher.remove_files(vm.record.spec)
    shutil.rmtree(vm.paths.directory, ignore_errors=True)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
