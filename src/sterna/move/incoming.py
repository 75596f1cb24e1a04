"""A move as its target lives it: reserve, wait, then take the VM or refuse it, durably.

A refusal is written before it is told, so that a `take` which arrives late cannot succeed. A
reservation whose source is silent for its lease is refused: that is always safe, because until
`take` is answered the source owns the VM or asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sterna import clock
from sterna.errors import (
    HostDraining,
    InboundDisabled,
    QMPError,
    ReservationNotFound,
    SternaError,
    TargetBusy,
    TargetLost,
    VMDamaged,
)
from sterna.host.parts import Parts
from sterna.model.check import Check, Severity
from sterna.model.host import HostFacts
from sterna.model.reservation import (
    Look,
    Looked,
    Probe,
    Rejoin,
    Rejoined,
    Reservation,
    ReservationStatus,
)
from sterna.model.vm import OwnershipState
from sterna.move import postcopy, protocol, slots
from sterna.move.arrival import Arrival, trouble_of
from sterna.move.arriving import ArrivingFiles
from sterna.move.berth import Berth
from sterna.move.probe import Probes
from sterna.move.writeback import write_back
from sterna.operations.runner import Job
from sterna.vms.machine import VM
from sterna.vms.mend import clear_departed
from sterna.vms.service import VMs

log = logging.getLogger(__name__)

LET_GO_S = 10.0  # after a refusal in post-copy, for the source to take its guest back
LAST_WORDS_S = 0.3  # between a stream that breaks and the end of the QEMU that read it
PROBE_S = 0.6  # for a QEMU to answer its daemon; the source waits for both
REMEMBERED = 256  # decided reservations, for questions that come late
CONT_TRIES = 20  # an image lock that the source's QEMU lets go of late
CONT_RETRY_S = 0.05


class Incoming:
    """All moves towards this host."""

    def __init__(self, vms: VMs, gather: Callable[[], Awaitable[HostFacts]]) -> None:
        self._vms = vms
        self.parts = Parts(vms.launcher.pools, host=vms.config.name)
        self._berth = Berth(vms, self.parts, self.undecided)
        self._gather = gather
        self._probes = Probes(lambda: vms.migration_addresses)
        self.on_arrival: Callable[[VM], None] = lambda _: None  # when a VM is ours and runs
        self._turns = {True: slots.Turns(), False: slots.Turns()}  # of VMs that run; that are off
        self._admission = asyncio.Lock()
        self._arrivals: dict[str, Arrival] = {}
        self._refused: deque[str] = deque(maxlen=REMEMBERED)  # before they were even asked for

    @property
    def host(self) -> str:
        return self._vms.config.name

    @property
    def promised_memory(self) -> int:
        """Bytes promised to VMs that have not arrived yet."""
        return sum(
            arrival.reservation.spec.memory
            for arrival in self._arrivals.values()
            if not arrival.decided.is_set() and arrival.reservation.live
        )

    @property
    def under_way(self) -> dict[str, int]:
        """How many VMs are coming, by the names of `Moving`."""
        live = sum(one.live for one in self.undecided())
        return {"hither_live": live, "hither_off": len(self.undecided()) - live}

    def undecided(self) -> list[Reservation]:
        """What is on its way here."""
        arrivals = list(self._arrivals.values())  # at once: asked for by a thread
        return [one.reservation for one in arrivals if not one.decided.is_set()]

    async def probe(self) -> Probe:
        """Await a source that wants to know how fast the link is."""
        probe, work = await self._probes.open()
        if work is not None:
            self._vms.runner.background(work, "swallow what measures the link")
        return probe

    # ---- reserve ---------------------------------------------------------------------------

    async def check(self, reservation: Reservation) -> list[Check]:
        """What would be refused now, with its fix; nothing is reserved."""
        return [
            Check(
                id=problem.code,
                severity=Severity.BLOCKER,
                finding=problem.message,
                fix=problem.advice,
            )
            for problem in await self._problems(reservation)
        ]

    async def look(self, look: Look) -> Looked:
        """What of that is here. Changes nothing."""
        pools = self._vms.launcher.pools
        seen = await asyncio.gather(*(pools.sees_proof(*one) for one in look.tokens.items()))
        files = [path for path in look.files if await asyncio.to_thread(Path(path).is_file)]
        there = [pool for pool, is_seen in zip(look.tokens, seen, strict=True) if is_seen]
        found = await asyncio.gather(*(pools.identity_in(path) for path in look.directories))
        known = {path: one for path, one in zip(look.directories, found, strict=True) if one}
        return Looked(pools=tuple(there), files=tuple(files), identities=known)

    async def _problems(self, reservation: Reservation) -> list[SternaError]:
        """All that stands in the way; files that a former life of the VM left here are not."""
        if not self._vms.settings().inbound:
            return [InboundDisabled(host=self.host)]
        if self._vms.settings().draining:
            return [HostDraining(host=self.host, what="takes no VMs")]
        former = self._vms.by_id(reservation.spec.id)
        if (
            former is not None
            and former.record.ownership.state is OwnershipState.RELEASED
            and former.process is None
            and not former.doing
        ):
            try:
                await clear_departed(former, self._vms.launcher.pools, self._vms.kept)
            except SternaError as error:  # the new record would forget them
                return [error]
        facts = await self._gather()
        return await asyncio.to_thread(lambda: list(self._berth.problems(reservation, facts)))

    async def reserve(self, reservation: Reservation) -> ReservationStatus:
        """Make ready for the VM, or refuse with nothing left here."""
        async with self._admission:  # two arrivals must not be promised the same memory
            arrival = await self._admit(reservation)
        vm = arrival.vm
        async with arrival.lock:
            try:
                await vm.write()  # durable before anything is made for it
                self._berth.write_nvram(reservation)
                self._follow(arrival)
            except BaseException as error:
                await self._refuse(arrival, str(error))
                raise
        return arrival.status

    async def open(self, operation: str) -> ReservationStatus:
        """Start the QEMU of a VM that runs, its files being here; it waits for memory and disks."""
        arrival = self._arrivals.get(operation)
        if arrival is None:
            raise ReservationNotFound(host=self.host, operation=operation)
        async with arrival.lock:
            arrival.heard = clock.monotonic()
            if arrival.decided.is_set() or arrival.answer is not None:
                return arrival.answer or arrival.status
            try:
                await arrival.files.place()
                await self._berth.make_tops(arrival.vm, arrival.reservation)
                answer, ground = await self._berth.listen(arrival.vm, arrival.reservation)
            except BaseException as error:
                await self._refuse(arrival, str(error))
                raise
            arrival.answer, arrival.ground = answer, ground
            name = f"the way on which {arrival.vm.name} comes"
            self._vms.runner.background(ground.watch(), name)
            self._write_back(arrival)
            return answer

    def _write_back(self, arrival: Arrival) -> None:
        """Until it is decided, what arrives of its disks is written down as it comes."""
        disks = {disk.name: disk for disk in arrival.vm.record.spec.disks}
        paths = [
            self._vms.launcher.pools.volume_path(disk.pool, disk.volume)
            for disk in (disks[mirror.disk] for mirror in arrival.reservation.mirrors)
        ]
        if paths:
            name = f"disks of {arrival.vm.name}"
            self._vms.runner.background(write_back(paths, arrival.decided), name)

    def _follow(self, arrival: Arrival) -> None:
        """The target's own operation, under the id of the source's."""
        reservation = arrival.reservation
        self._vms.runner.start(
            "receive",
            vm=arrival.vm.name,
            vm_id=arrival.vm.id,
            work=lambda job: self._wait(job, arrival),
            peer=reservation.source,
            id=reservation.operation,
            cancellable=False,
        )

    async def _admit(self, reservation: Reservation) -> Arrival:
        """Take name and memory for the VM. Raises what stands in the way."""
        self._require_turn(reservation)
        for problem in await self._problems(reservation):
            raise problem
        if reservation.operation in self._refused or reservation.operation in self._arrivals:
            raise TargetLost(target=self.host, reason="this reservation has been decided already")
        self._forget_old()
        vm = self._vms.handle(self._berth.record(reservation))
        arrival = Arrival(
            reservation,
            vm,
            ReservationStatus(operation=reservation.operation, state=OwnershipState.RESERVED),
            ArrivingFiles(vm, reservation, self.parts, self._vms.kept),
        )
        self._berth.require_unclaimed(reservation)  # since the look in the thread
        self._vms.adopt(vm)
        self._arrivals[reservation.operation] = arrival
        vm.doing, vm.operation = f"moving in from {reservation.source}", reservation.operation
        return arrival

    def _require_turn(self, reservation: Reservation) -> None:
        """This host's own limit, whatever the source thinks of it. Raises TargetBusy."""
        settings, live = self._vms.settings(), reservation.live
        if not settings.inbound or settings.draining:
            return  # which is said with the other problems; nobody waits for it
        here = sum(one.live is live for one in self.undecided())
        free = (settings.live_moves if live else settings.storage_moves) - here
        if place := self._turns[live].place(reservation.operation, free):
            raise TargetBusy(waits=slots.waits(here, place, f"to {self.host}"))

    def _forget_old(self) -> None:
        decided = [key for key, arrival in self._arrivals.items() if arrival.decided.is_set()]
        for key in decided[:-REMEMBERED]:
            del self._arrivals[key]

    # ---- wait ------------------------------------------------------------------------------

    async def _wait(self, job: Job, arrival: Arrival) -> dict[str, Any]:
        """The target's own operation: ends with the decision, or refuses by itself."""
        vm, source = arrival.vm, arrival.reservation.source
        job.phase = "reserved"
        async with job.step("reserve") as step:
            step.say(f"everything is ready for {vm.name} from {source}")
        async with job.step("receive") as step:
            while not arrival.decided.is_set():
                await self._wait_a_while(arrival)
            if arrival.status.state is not OwnershipState.OWNED:
                raise TargetLost(target=self.host, reason=arrival.status.reason)
            step.say(f"{vm.name} belongs to {self.host} now")
        if arrival.lacks_memory:
            async with job.step("postcopy") as step:
                try:
                    with vm.lease("receiving the rest of its memory", job.id):
                        await postcopy.arrive(vm, source)
                finally:
                    if job.stopped_by != "shutdown":
                        await self._leave(arrival)
                self.on_arrival(vm)
                step.say(f"all memory of {vm.name} is here")
        for warning in arrival.status.warnings:
            job.warn(warning)
        return {
            "from": source,
            "to": self.host,
            "live": arrival.reservation.live,
            "pause_parts_ms": arrival.status.parts_ms or {},
            "text": f"{vm.name} came from {source}",
        }

    async def _wait_a_while(self, arrival: Arrival) -> None:
        """Until decided, or a reason to refuse."""
        vm = arrival.vm
        waits = [asyncio.ensure_future(arrival.decided.wait())]
        if arrival.is_open:
            waits.append(asyncio.ensure_future(vm.ended.wait()))
        if arrival.ground is not None:
            waits.append(asyncio.ensure_future(arrival.ground.failed.wait()))
        try:
            await asyncio.wait(
                waits, timeout=arrival.lease_s / 6, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        if arrival.decided.is_set():
            return
        ground = arrival.ground
        if ground is not None and vm.ended.is_set():  # which may be why QEMU has ended
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await ground.failed.wait()
        if ground is not None and ground.failed.is_set():
            await self.refuse(arrival.reservation.operation, ground.failure)
        elif arrival.is_open and vm.ended.is_set():
            await self.refuse(arrival.reservation.operation, f"its QEMU said: {vm.last_words()}")
        elif clock.monotonic() - arrival.heard > arrival.lease_s:
            source = arrival.reservation.source
            await self.refuse(
                arrival.reservation.operation, f"{source} was silent for {arrival.lease_s:g} s"
            )

    # ---- decide ----------------------------------------------------------------------------

    def status(self, operation: str) -> ReservationStatus:
        """Where a reservation stands; asking renews it."""
        arrival = self._arrivals.get(operation)
        if arrival is None:
            raise ReservationNotFound(host=self.host, operation=operation)
        arrival.heard = clock.monotonic()
        return arrival.status

    def files(self, operation: str) -> ArrivingFiles:
        """The files of a reservation that is open still; asking renews it."""
        status = self.status(operation)
        if status.state is not OwnershipState.RESERVED:
            reason = status.reason or "this reservation has been decided already"
            raise TargetLost(target=self.host, reason=reason)
        return self._arrivals[operation].files

    async def answers(self, operation: str) -> bool:
        """Whether the QEMU that waits for the VM answers, or is at least busy loading it."""
        arrival = self._arrivals.get(operation)
        if arrival is None or arrival.vm.monitor is None:
            return False
        try:
            await arrival.vm.monitor.ping(timeout_s=PROBE_S)
        except SternaError:
            return False
        return True

    async def take(self, operation: str, vm_id: str, epoch: int) -> ReservationStatus:
        """Own the VM and let it run. The same answer however often it is asked."""
        arrived = clock.monotonic()
        arrival = self._arrivals.get(operation)
        if arrival is None:
            return self._from_record(vm_id, operation, epoch)
        async with arrival.lock:
            if arrival.decided.is_set():
                return arrival.status
            if epoch != arrival.reservation.epoch:
                return await self._refuse(
                    arrival, f"it was reserved for another epoch than {epoch}"
                )
            if (trouble := await trouble_of(arrival)) is not None:
                return await self._refuse(arrival, trouble)
            return await self._take(arrival, arrived)

    async def rejoin(self, wish: Rejoin) -> Rejoined:
        """Of a VM that was taken in post-copy: its source asks for a new connection.

        After a restart as well: QEMU knows how it stands.
        """
        vm = self._vms.by_id(wish.vm_id)
        if vm is None or vm.record.ownership.epoch != wish.epoch or not vm.is_here:
            return Rejoined(memory="whole")  # it has gone on, or was deleted: nobody lacks anything
        addresses = self._vms.migration_addresses or ("",)
        return await postcopy.rejoin(vm, addresses[wish.failed % len(addresses)], wish)

    async def _take(self, arrival: Arrival, arrived: float) -> ReservationStatus:
        vm, reservation = arrival.vm, arrival.reservation
        owned_before, made = vm.record.owned_epoch, vm.record.made
        if reservation.live:
            await self._berth.unexport(vm, reservation)
        taken = protocol.on_take(
            protocol.standing(vm.record), reservation.operation, reservation.epoch, is_whole=True
        )
        if taken.standing is None or taken.answer is not OwnershipState.OWNED:
            return await self._refuse(arrival, "its record was changed by another's decision")
        await vm.write(**protocol.fields(taken.standing), made=())
        written = clock.monotonic()
        warnings: tuple[str, ...] = ()
        if reservation.live and not reservation.paused:
            try:
                await self._continue(vm)
            except QMPError as error:  # it has not run here: giving it back is still right
                back = protocol.not_run(protocol.standing(vm.record), owned_before)
                await vm.write(**protocol.fields(back), made=made)
                return await self._refuse(arrival, error.message)
            except SternaError as error:
                warnings = (f"{vm.name} is here, but did not run at once: {error.message}",)
        ran = clock.monotonic()
        if reservation.live and vm.record.spec.nics:
            with contextlib.suppress(SternaError):
                await vm.qmp.announce_self()
        announced = clock.monotonic()
        status = self._decide(
            arrival,
            replace(
                arrival.status,
                state=OwnershipState.OWNED,
                pause_ms=(ran - arrived) * 1000,
                parts_ms={
                    "target_write": (written - arrived) * 1000,
                    "continue": (ran - written) * 1000,
                    "announce": (announced - ran) * 1000,
                },
                warnings=warnings,
            ),
        )
        if not arrival.lacks_memory:
            self.on_arrival(vm)
            name = f"close the way on which {vm.name} came"
            self._vms.runner.background(self._leave(arrival), name)
        return status

    async def _continue(self, vm: VM) -> None:
        for attempt in range(CONT_TRIES):
            try:
                return await vm.resume_as_recorded()
            except QMPError:
                if attempt == CONT_TRIES - 1:
                    raise
                await asyncio.sleep(CONT_RETRY_S)
        return None

    async def refuse(self, operation: str, reason: str) -> ReservationStatus:
        """Give a reservation up, unless the VM was taken: then the answer says so."""
        arrival = self._arrivals.get(operation)
        if arrival is None:
            raise ReservationNotFound(host=self.host, operation=operation)
        async with arrival.lock:
            if arrival.decided.is_set():
                return arrival.status
            return await self._refuse(arrival, reason)

    async def drop(self, vm: VM, reason: str) -> None:
        """Refuse whatever reservation of `vm` is undecided here."""
        for operation, arrival in list(self._arrivals.items()):
            if arrival.vm is vm and not arrival.decided.is_set():
                await self.refuse(operation, reason)

    def source_of(self, operation: str) -> str:
        """The host that asked for that reservation; empty if there is none."""
        arrival = self._arrivals.get(operation)
        return arrival.reservation.source if arrival else ""

    async def refuse_asked(
        self, operation: str, vm_id: str, epoch: int, reason: str
    ) -> ReservationStatus:
        """The source's wish to end it; a reservation that arrives after it is refused too."""
        arrival = self._arrivals.get(operation)
        if arrival is not None:
            await self._let_it_speak(arrival)
            return await self.refuse(operation, reason)
        self._refused.append(operation)
        return self._from_record(vm_id, operation, epoch)

    async def _let_it_speak(self, arrival: Arrival) -> None:
        """A QEMU that could not load the VM is about to say why, and to end."""
        if arrival.is_open and not arrival.decided.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await arrival.vm.ended.wait()

    async def _refuse(self, arrival: Arrival, reason: str) -> ReservationStatus:
        """Write the refusal down, then remove what was made for the VM."""
        vm = arrival.vm
        refused = protocol.fields(protocol.refuse(protocol.standing(vm.record)))
        try:
            await vm.write(**refused)
        except SternaError as error:
            if vm.record.ownership.state is OwnershipState.OWNED:
                raise  # only a reservation found after a restart is refused as well
            log.error("refusal of %s not written: %s", vm.name, error)  # noqa: TRY400
            vm.record = replace(vm.record, **refused)  # type: ignore[arg-type]
        said = vm.last_words() if arrival.is_open and vm.ended.is_set() else ""
        status = self._decide(
            arrival,
            replace(arrival.status, state=OwnershipState.REFUSED, reason=reason, said=said),
        )
        vm.doing = "being cleared away"
        if arrival.lacks_memory:  # the source gets its guest back through this very connection
            self._vms.runner.background(self._clear_late(arrival), f"clear {vm.name} away")
        else:
            await self._clear_away(arrival)
        return status

    async def _clear_away(self, arrival: Arrival) -> None:
        try:
            await arrival.files.close()
            await self._leave(arrival)
            await self.clear(arrival.vm)
        finally:
            arrival.vm.doing = ""

    async def _clear_late(self, arrival: Arrival) -> None:
        with contextlib.suppress(TimeoutError, SternaError):
            async with asyncio.timeout(LET_GO_S):
                await postcopy.let_go(arrival.vm)
        await self._clear_away(arrival)

    @staticmethod
    async def _leave(arrival: Arrival) -> None:
        """The way on which it came is not needed any more."""
        if arrival.ground is not None:
            with contextlib.suppress(SternaError):  # what is left ends with its QEMU
                await arrival.ground.end()

    async def clear(self, vm: VM) -> None:
        """Remove what was made for a VM that was refused."""
        await self._berth.clear(vm)
        if protocol.remembers(protocol.standing(vm.record)):
            vm.remove_run_dir()
        else:
            await vm.delete()
            self._vms.forget(vm)

    def _decide(self, arrival: Arrival, status: ReservationStatus) -> ReservationStatus:
        arrival.status = status
        arrival.vm.doing, arrival.vm.operation = "", ""
        arrival.decided.set()
        return status

    def _from_record(self, vm_id: str, operation: str, epoch: int) -> ReservationStatus:
        """After a restart: what was written down decides."""
        for item in self._vms.damaged:
            if item.key == vm_id:  # it may have owned it: no answer is better than a guess
                raise VMDamaged(vm=vm_id, host=self.host, path=item.path, reason=item.reason)
        vm = self._vms.by_id(vm_id)
        known = protocol.standing(vm.record) if vm is not None else None
        if protocol.late_answer(known, epoch) is OwnershipState.OWNED:
            return ReservationStatus(operation=operation, state=OwnershipState.OWNED)
        return ReservationStatus(
            operation=operation,
            state=OwnershipState.REFUSED,
            reason=f"{self.host} holds no such reservation any more: its sternad has restarted",
        )
