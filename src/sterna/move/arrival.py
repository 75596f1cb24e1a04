"""One VM on its way to this host: its reservation, what has come of it, and the answer.

Promises: `trouble_of` says that a VM may run here only if all of it is, in post-copy all but pages.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from sterna import clock
from sterna.errors import SternaError
from sterna.model.reservation import Reservation, ReservationStatus
from sterna.move import postcopy
from sterna.move.arriving import ArrivingFiles
from sterna.move.landing import Landing
from sterna.vms.machine import VM

LEASE_S = 30.0  # at least; the source asks twice a second
LEASE_GRACES = 2
LOADED_S = 5.0  # the source says completed when QEMU here is just about to
LOADED_POSTCOPY_S = 30.0  # it only says that it has sent; a slow link has it still
LOOK_S = 0.01  # for what no event tells, while the guest stands still


@dataclass(slots=True)
class Arrival:
    """One reservation while it is undecided, and its answer afterwards."""

    reservation: Reservation
    vm: VM
    status: ReservationStatus
    files: ArrivingFiles
    lacks_memory: bool = False  # taken in post-copy
    answer: ReservationStatus | None = None  # to open: its QEMU has been started. Has secrets
    ground: Landing | None = None
    heard: float = field(default_factory=clock.monotonic)
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # take and refuse, one at a time

    @property
    def is_open(self) -> bool:
        return self.answer is not None

    @property
    def lease_s(self) -> float:
        """Longer than its source waits for a link or for us: it must be the first to give up."""
        return max(LEASE_S, self.reservation.grace_s * LEASE_GRACES)


async def trouble_of(arrival: Arrival) -> str | None:
    """Why the VM cannot run here; None if all of it is."""
    vm = arrival.vm
    if not arrival.reservation.live:
        return await _not_placed(arrival)
    if not arrival.is_open:
        return "its QEMU was never started here"
    longest_s = LOADED_POSTCOPY_S if arrival.reservation.postcopy else LOADED_S
    try:
        async with asyncio.timeout(longest_s):
            return await _wait_loaded(arrival)
    except TimeoutError:
        return f"its QEMU had not loaded the VM {longest_s:g} s after the source was through"
    except SternaError as error:
        if vm.process is not None and vm.process.is_alive:
            raise  # not known now: the source asks again
        return error.message


async def _wait_loaded(arrival: Arrival) -> str | None:
    """Until all of it is here, in post-copy all but pages; or why it never will be."""
    vm = arrival.vm
    with vm.qmp.session.listen("MIGRATION") as events:
        while (status := (await vm.qmp.query_migrate()).status) != "completed":
            if status in ("failed", "cancelled"):
                return f"its QEMU says the move has {status}: {vm.last_words()}"
            if postcopy.is_sending(status) and await vm.qmp.query_status() != "inmigrate":
                arrival.lacks_memory = True
                if arrival.ground is not None:
                    await arrival.ground.hold()
                break
            with contextlib.suppress(TimeoutError):
                await events.get(LOOK_S)
    return None


async def _not_placed(arrival: Arrival) -> str | None:
    """Put the files of a VM that is off where they belong; why that cannot be done."""
    try:
        await arrival.files.place()
    except SternaError as error:
        return error.message
    return None
