"""One move as its source drives it: reserve, disks, memory, handover, tidy.

Each step registers its undo before its effect; whatever fails before the VM is yielded is taken
back and the guest goes on here. From then on `handover` rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from sterna import clock
from sterna.errors import (
    Cancelled,
    Fenced,
    HostUnreachable,
    MemoryLost,
    MoveCancelled,
    MoveFailed,
    MoveLeftovers,
    MoveUnknown,
    QEMULost,
    SternaError,
    TargetBusy,
    TargetLost,
    TimedOut,
    VMLost,
)
from sterna.model.disk import node_name
from sterna.model.move import (
    DEFAULT_KEEP_DAYS,
    Adjustment,
    DiskProgress,
    MemoryProgress,
    MoveWishes,
    Phase,
)
from sterna.model.reservation import GIVEN_UP, Reservation, ReservationStatus
from sterna.model.travel import Travel
from sterna.model.vm import OwnershipState
from sterna.move import (
    capabilities,
    delegation,
    files,
    handover,
    memory,
    multifd,
    offer,
    postcopy,
    sample,
)
from sterna.move.carriers import Choice
from sterna.move.departure import tidy
from sterna.move.disks import Mirrors
from sterna.move.limits import Limits, Member
from sterna.move.peer import Peer
from sterna.move.relayed import carriage
from sterna.move.report import Report
from sterna.move.slots import ASKS_S, Turn
from sterna.move.undo import Undo
from sterna.move.watch import Watch
from sterna.operations.runner import Job
from sterna.tasks import finish, together
from sterna.vms.machine import QUIT_TIMEOUT_S, VM
from sterna.vms.service import VMs

SWITCH_OVER_S = 10.0  # beyond the pause allowed; device state of the largest guests takes a second


class Move:
    """One move of one VM."""

    def __init__(  # noqa: PLR0913 - what, where to, how, and who does it
        self,
        vm: VM,
        peer: Peer,
        wishes: MoveWishes,
        travel: Travel,
        *,
        job: Job,
        vms: VMs,
        limits: Limits,
        choice: Choice | None,
        addresses: tuple[str, ...],
        turn: Turn,
    ) -> None:
        self.vm = vm
        self.peer = peer
        self.wishes = wishes
        self.travel = travel
        self.job = job
        self.vms = vms
        self.is_live = vm.process is not None
        self._told = ""  # what the target says of its side of a move that failed
        self._mirrors: Mirrors | None = None
        self._bitmaps: offer.Bitmaps = {}  # that travel
        self._opened: ReservationStatus | None = None
        self._is_postcopy = False
        self._limits = limits
        self._member: Member | None = None  # of them, while it is under way
        self._carried_since = 0.0  # monotonic; a deadline counts from then, not while it waited
        self._share: int | None = wishes.bandwidth  # bytes/s that it may use now
        self._pacer = files.Pacer(self._share)
        kind = choice.kind if choice else "direct"
        self._turn = turn
        self._addresses = addresses  # of the target, where to arrive
        self.carriage = carriage(kind, vm, vms, job.log, self._channels(choice))
        self.report = Report(
            source=vms.config.name, target=peer.name, is_live=self.is_live, choice=choice
        )

    def _channels(self, choice: Choice | None) -> int:
        """Connections that QEMU would like if it sends the memory by itself."""
        if choice is None or self.wishes.on_stall == "postcopy":
            return 0
        return multifd.offered(
            self.vms.config.migration.channels,
            self.vms.launcher.capabilities.migration_capabilities,
            cpus=os.cpu_count() or 1,
            link=choice.link,
            limit=self.wishes.bandwidth,
        )

    async def run(self) -> dict[str, Any]:
        """The report of a success. Raises MoveFailed, MoveCancelled, MoveLeftovers."""
        undo = Undo(self.job)
        try:
            async with undo, contextlib.AsyncExitStack() as stack:
                with self.job.adjustable(self._adjust):
                    member = self._limits.member(self._share, self._limit)
                    self._member = await stack.enter_async_context(member)
                    await self._member.ask(self.wishes.bandwidth)  # it may have changed meanwhile
                    await self._reserve(undo)
                    await self._carry(undo)
                await self._hand_over(undo)
        except Fenced as error:
            self.job.warn(error.message)
            for left in undo.leftovers:
                self.job.warn(left)
            return handover.fenced_report(self.vms.config.name, error)
        except BaseException as error:
            self._explain(error, undo)
            raise
        finally:
            if not (self._is_postcopy and self.job.stopped_by == "shutdown"):
                await finish(self.carriage.end(is_undone=False))
        return self.report.finish()

    async def _limit(self, share: int | None) -> None:
        """From now on it may use so many bytes/s of the wire."""
        self._share = share
        self._pacer.change(share)
        await self.carriage.limit(share)
        if self._mirrors is not None and not self.carriage.limits_itself:
            await self._mirrors.limit(share)

    async def _adjust(self, wished: Adjustment) -> None:
        """The user wants other limits."""
        self.wishes = wished.of(self.wishes)
        if wished.bandwidth is not None and self._member is not None:
            await self._member.ask(self.wishes.bandwidth)
        self.job.log(wished.told)

    def _qemus_wishes(self) -> MoveWishes:
        """What QEMU itself shall keep to."""
        share = None if self.carriage.limits_itself else self._share
        return replace(self.wishes, bandwidth=share)

    def _explain(self, error: BaseException, undo: Undo) -> None:
        """Raise what the user should read instead of `error`."""
        error = _first(error)
        names = {"vm": self.vm.name, "target": self.peer.name}
        if self.vm.record.ownership.state is OwnershipState.YIELDING:
            raise MoveUnknown(**names, operation=self.job.id) from error
        if self.vm.record.ownership.state is OwnershipState.RELEASED:
            is_told = isinstance(error, (MemoryLost, MoveLeftovers))
            if is_told or self.job.stopped_by == "shutdown":
                return  # or post-copy, which the next daemon goes on with
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
                reason=(self.carriage.failure or error.message) + self._words_of_target(error),
                fix=error.advice or "It may be tried again at any time",
            ) from error

    def _words_of_target(self, error: SternaError) -> str:
        """The target knows best why it did not take the stream."""
        return "" if not self._told or isinstance(error, TargetLost) else f"; {self._told}"

    # ---- phases ----------------------------------------------------------------------------

    async def _reserve(self, undo: Undo) -> None:
        self.job.phase = Phase.RESERVE
        vm, travel = self.vm, self.travel
        self.peer.prefer(self._addresses)
        epoch = vm.record.ownership.epoch + 1
        async with self.job.step("reserve") as step, self.report.phase(Phase.RESERVE):
            undo.push("clear the mark of the move", self._clear_mark)
            await self._mark()
            if self.is_live:
                undo.push("close the way to its target", self.carriage.end)
            undo.push(f"tell {self.peer.name} to drop its reservation", lambda: self._refuse(epoch))
            self._bitmaps = await offer.bitmaps(vm, travel)
            reservation = offer.reservation(
                vm,
                self.vms,
                travel,
                operation=self.job.id,
                carried=self._bitmaps,
                carrier=replace(self.carriage.offer, addresses=self._addresses),
            )
            may_follow = self.is_live and self.wishes.on_stall == "postcopy"
            reservation = replace(reservation, postcopy=may_follow)
            await together(self.carriage.start(), self._ask_for_room(reservation))
            step.say(f"{self.peer.name} holds the name and room for {vm.name}")

    async def _ask_for_room(self, reservation: Reservation) -> None:
        """Ask until the target says yes, or no; "busy" is neither."""
        said = ""
        while True:
            try:
                ticket = await delegation.ticket(self.peer, self.job.log)
                await self.peer.reserve(reservation, ticket)
            except TargetBusy as error:
                if error.message != said:
                    said = error.message
                    self.job.sample({"waits": said})
                    self.job.log(said)
                async with self._turn.lent():  # a move to another host may go ahead
                    await asyncio.sleep(ASKS_S)
            else:
                return

    async def _mark(self) -> None:
        """What is to happen to the files here, and who has the VM: before anything is given away."""
        if self.wishes.keep_source:
            label = f"copy that a move to {self.peer.name} left"
            await self.vms.kept.intend(
                self.vm.name,
                self.vm.id,
                self.travel.leaving,
                label,
                self.wishes.keep_days or DEFAULT_KEEP_DAYS,
            )
        await self.vm.write(moving=self.job.id, departing=self.travel.leaving)

    async def _clear_mark(self) -> None:
        await self.vm.write(moving="", departing=())
        await self.vms.kept.forsake(self.vm.id)

    async def _refuse(self, epoch: int) -> None:
        """A target that cannot be told drops its reservation by itself: it hears no more of us."""
        try:
            answer = await self.peer.refuse(self.job.id, self.vm.id, epoch)
            if answer.said:
                self._told = f"the QEMU of {self.peer.name} said: {answer.said}"
            elif answer.reason != GIVEN_UP:
                self._told = f"{self.peer.name} said: {answer.reason}"
        except HostUnreachable as error:
            self.job.log(f"{error.message}; it drops its reservation by itself", level="warning")

    async def _carry(self, undo: Undo) -> None:
        """Disks, then memory, until the guest is stopped, with a target that answered just now."""
        grace_s, deadline_s = self.vms.config.migration.grace, self.wishes.deadline_s
        watch = Watch(self.peer, self.job.id, grace_s)
        self._carried_since = clock.monotonic()
        try:
            async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as group:
                tasks = [group.create_task(watch.run()), group.create_task(self.carriage.run())]
                if not self.travel.is_empty:
                    await self._disks(undo, group, tasks)
                if self.is_live:
                    await self._memory(undo)
                for task in tasks:
                    task.cancel()
        except TimeoutError as error:
            raise TimedOut(detail=f"it was not through within {deadline_s:g} s") from error
        if self.is_live and not watch.is_fresh:
            await watch.ask()

    async def _disks(
        self, undo: Undo, group: asyncio.TaskGroup, tasks: list[asyncio.Task[None]]
    ) -> None:
        """Files first, because images rest on them; then the mirrors, which go on from here."""
        self.job.phase = Phase.DISKS
        async with self.job.step("disks") as step, self.report.phase(Phase.DISKS):
            if self.travel.files:
                await self._send_files()
            if self.travel.mirrors:
                await self._mirror(undo, group, tasks)
            step.say(self.report.disks_sentence())

    async def _send_files(self) -> None:
        """All that nobody writes any more; the target has read it back when this returns."""
        sent = await files.send(
            files.sendings(self.travel, self.vm.record, self.vms.launcher.pools),
            self.peer,
            self.job.id,
            host=self.vms.config.name,
            pacer=self._pacer,
            report=self._disk_progress,
        )
        self.report.sent(sent.wire, sent.present)

    async def _mirror(
        self, undo: Undo, group: asyncio.TaskGroup, tasks: list[asyncio.Task[None]]
    ) -> None:
        mirrors = self._mirrors = Mirrors(
            self.vm.blocks,
            self.travel.mirrors,
            self._qemus_wishes(),
            report=self._disk_progress,
            probe=lambda: self.peer.answers(self.job.id),
            is_link_down=lambda: self.carriage.is_link_down,
            cut=self.carriage.cut_disks,
        )
        undo.push("end the copies of its disks", lambda: self._if_alive(mirrors.abandon))
        undo.push("cut the way of its disks", self.carriage.sever)
        await self._open()
        tasks.append(group.create_task(mirrors.run(self.carriage.disk)))
        await mirrors.synced.wait()
        self._weigh()

    def _weigh(self) -> None:
        """What the mirrors have sent, as long as their connections are there to be asked."""
        self.report.mirrored(self.carriage.disk_bytes())

    async def _open(self) -> ReservationStatus:
        """The target's QEMU waits from then on; asked for once."""
        if self._opened is None:
            self._opened = await self.peer.open(self.job.id)
            await self.carriage.begin(self._opened)
        return self._opened

    async def _memory(self, undo: Undo) -> None:
        vm = self.vm
        pid = vm.process.pid if vm.process is not None else 0  # a QEMU that is gone is told below
        _, found = await sample.during(pid, self._open())
        self.job.phase = Phase.MEMORY
        wanted = capabilities.SOURCE | self.carriage.capabilities
        mapping = [
            capabilities.bitmap_mapping(
                node_name(mirror.disk.pool, mirror.disk.volume), mirror.disk.name, names
            )
            for mirror in self.travel.mirrors
            if (names := self._bitmaps.get(mirror.disk.name))
        ]
        if mapping:
            wanted |= {capabilities.BITMAPS}
        if self.wishes.on_stall == "postcopy":
            wanted |= {capabilities.POSTCOPY}
        caps = capabilities.settings(
            wanted,
            self.vms.launcher.capabilities.migration_capabilities,
            self.vms.config.name,
        )
        async with self.job.step("memory") as step, self.report.phase(Phase.MEMORY):
            undo.push("continue the guest", lambda: self._if_alive(vm.resume_as_recorded))
            undo.push("end the migration of its memory", lambda: self._if_alive(self._abort))
            await memory.prepare(vm.qmp, self._qemus_wishes(), dict(caps), mapping)
            state = await memory.precopy(
                vm.qmp,
                self.carriage.uri,
                self.wishes,
                self._progress,
                self._around(found),
            )
            self.report.converged(state)
            self._is_postcopy = state.is_postcopy
            self.report.guest_stopped(state.stopped or clock.monotonic())
            step.say(self.report.memory_sentence())

    def _around(self, found: sample.Memory | None) -> memory.Around:
        """What the convergence policy must know beside QEMU's figures."""
        deadline, mirrors = self.wishes.deadline_s, self._mirrors
        carried_s = clock.monotonic() - self._carried_since
        return memory.Around(
            is_link_down=lambda: self.carriage.is_link_down,
            final_rate=lambda: self.carriage.final_rate,
            in_flight=lambda: self.carriage.in_flight,
            disks_ms=lambda: mirrors.drain_ms if mirrors is not None else 0.0,
            say=self.job.log,
            dirty_rate=found.dirty if found is not None else None,
            deadline_s=None if deadline is None else deadline - carried_s,
            max_downtime_ms=lambda: self.wishes.pause_ms,
            hold=self.carriage.hold,
        )

    async def _abort(self) -> None:
        """Disks first: what hangs on them would not let the migration end."""
        if self._mirrors is not None:
            await self._mirrors.cut()
        if not await postcopy.take_back(self.vm):
            self.job.warn(f"{self.vm.name} is off: its memory was torn apart. Its disks are whole")

    async def _if_alive(self, step: Callable[[], Awaitable[object]]) -> None:
        """An undo of something that ends with its QEMU by itself: the VM is off then, here."""
        try:
            await step()
        except (QEMULost, VMLost):
            async with asyncio.timeout(QUIT_TIMEOUT_S):
                await self.vm.ended.wait()

    async def _hand_over(self, undo: Undo) -> None:
        """Cannot be cancelled once begun; a shutdown waits for it."""
        vm = self.vm
        with self.job.uncancellable():
            self.job.phase = Phase.HANDOVER
            async with self.job.step("handover") as step, self.report.phase(Phase.HANDOVER):
                if self.is_live:
                    await self._last_copy()
                try:
                    answer = await handover.give(vm, self.peer, self.job, self.vms.launcher.pools)
                finally:
                    if vm.record.ownership.state is not OwnershipState.OWNED:
                        undo.dismiss()  # from here on only the target's answer decides
                self.report.taken(answer)
                if self.is_live:
                    with contextlib.suppress(SternaError):  # figures are never worth an error
                        self.report.migrated(await memory.figures(vm.qmp))
                    if not self._is_postcopy:
                        await self._close()
                for warning in answer.warnings:
                    self.job.warn(warning)
                step.say(self.report.pause_sentence(vm.name))
            lost = await self._follow() if self._is_postcopy else None
            self.job.phase = Phase.TIDY
            async with self.job.step("tidy") as step, self.report.phase(Phase.TIDY):
                await tidy(vm, self.vms, self.job, has_failed=lost is not None)
                step.say(f"nothing of {vm.name} is left on {self.vms.config.name}")
        if lost is not None:
            raise lost

    async def _follow(self) -> MemoryLost | None:
        """The guest runs on the target; our QEMU stays until its memory is there too."""
        self.job.phase = Phase.POSTCOPY
        await handover.release(self.vm, self.job)
        async with self.job.step("postcopy") as step, self.report.phase(Phase.POSTCOPY):
            try:
                sender = postcopy.Sender(self.vm, lambda: self.peer, self.job, self._view)
                info = await sender.run()
            except MemoryLost as error:
                step.say(error.message)
                return error
            finally:
                if self.job.stopped_by != "shutdown":
                    await self._close()
            if info is not None:
                self.report.migrated(info)
            step.say(f"all memory of {self.vm.name} is on {self.peer.name}")
        return None

    async def _close(self) -> None:
        """The way to the target is not needed any more; what it counted is."""
        await self.carriage.end(is_undone=False)
        view = self.carriage.view()
        known: dict[str, Any] = {
            key: view[key] for key in ("ratio", "pages", "down_s") if key in view
        }
        self.report.carried(self.carriage.wire_bytes(), known)

    async def _last_copy(self) -> None:
        vm = self.vm
        if self._mirrors is not None:
            with self.report.part("disks"):
                await self._mirrors.drain()
                self._weigh()
                await self._mirrors.close()
        with self.report.part("last_copy"):
            deadline_s = SWITCH_OVER_S + self.wishes.pause_ms / 1000
            wanted = memory.LEFT if self._is_postcopy else memory.COMPLETED
            await asyncio.gather(
                memory.switch_over(vm.qmp, deadline_s, wanted), self._forget_addresses()
            )

    async def _forget_addresses(self) -> None:
        """Frames for the VM leave this host from now on, before its target announces it."""
        launcher = self.vms.launcher
        for nic in self.vm.record.spec.nics:
            try:
                await launcher.network.forget(launcher.switches.get(nic.switch), nic.mac)
            except Exception as error:  # noqa: BLE001 - never worth a move
                self.job.warn(f"traffic may need seconds to follow {self.vm.name}: {error}")

    def _view(self) -> dict[str, Any]:
        """What progress tells of the way to the target."""
        return self.carriage.view() | {"limit": self._share, "carrier": self.carriage.kind}

    def _progress(self, sample: MemoryProgress) -> None:
        self.job.sample(replace(sample, time_s=round(self.job.elapsed, 3), **self._view()))

    def _disk_progress(self, sample: DiskProgress) -> None:
        if self.job.phase == Phase.DISKS:
            self.job.sample(replace(sample, time_s=round(self.job.elapsed, 3), **self._view()))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
