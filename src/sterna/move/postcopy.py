"""Post-copy: the guest runs on the target while a part of its memory is still on the source.

QEMU's own state is the mark of it, on both hosts and for every daemon that comes later: a source
whose migration is in one of `SENDING` has pages that its target lacks. Promises: the source's QEMU
is not ended before its migration has completed or the pages are of no use any more; a connection
that breaks is made anew until that is so, while the target's guest waits for what it lacks; memory
that is lost ends in a VM that is off, with whole disks, on the host that owns it, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sterna import clock
from sterna.errors import Failed, MemoryLost, QEMULost, QMPError, QMPTimeout, SternaError, VMLost
from sterna.model.move import MemoryProgress, Phase
from sterna.model.reservation import Rejoin, Rejoined
from sterna.move import memory
from sterna.move.peer import Peer
from sterna.operations.runner import Job
from sterna.qemu.commands import MigrationInfo
from sterna.qemu.session import Events
from sterna.qemu.sockets import cut_connections, listening_ports
from sterna.vms.machine import VM

CAPABILITY = "postcopy-ram"
# Names of later QEMUs too: whatever begins so has left the source for good.
PREFIX = "postcopy-"
ACTIVE, PAUSED = "postcopy-active", "postcopy-paused"
LEFT = ("finish-migrate", "postmigrate")  # states of vCPUs that a migration has stopped
RESUME_S = 10.0  # from a new connection until memory flows again
LOOK_S = 0.5
BUSY_S = 2.0  # a main loop that has not answered by then waits for memory
RETRY_S = 0.5  # first; doubles up to RETRY_MAX_S
RETRY_MAX_S = 5.0
STUCK_S = 15.0  # nothing sent for so long: the connection is cut, and made anew


def is_sending(status: str) -> bool:
    """Whether a migration in that state has left memory behind which its target lacks."""
    return status.startswith(PREFIX)


async def sends(vm: VM) -> bool:
    """Whether the QEMU of `vm` has pages that another one lacks, or lacks pages itself."""
    if vm.monitor is None:
        return False
    with contextlib.suppress(QEMULost, QMPTimeout):
        return is_sending((await vm.monitor.query_migrate(timeout_s=memory.PING_S)).status)
    return False


async def take_back(vm: VM) -> bool:
    """End a migration whose target has certainly not run the guest; False: its QEMU had to go too.

    QEMU gives a guest back only as long as its connection to the target holds. Raises QMPTimeout
    if it did not end, and the guest is whole here.
    """
    if vm.process is not None:
        await asyncio.to_thread(cut_connections, vm.process.pid, are_connecting=True)
    try:
        await memory.abort(vm.qmp)
    except QMPTimeout:
        if not await _is_torn(vm):
            raise
        await vm.quit()
        note = f"{clock.now()} its memory was torn apart when a move failed: it is off, boot it"
        await vm.write(notes=(*vm.record.notes[-9:], note))
        return False
    return True


async def _is_torn(vm: VM) -> bool:
    """Whether a migration that does not end has left memory behind that is not here any more.

    A QEMU that was never allowed post-copy has all of it, and so has one whose vCPUs may still run.
    """
    info = await vm.qmp.query_migrate()
    if is_sending(info.status):
        return True
    if info.status != "cancelling" or await vm.qmp.query_status() not in LEFT:
        return False
    return CAPABILITY in await vm.qmp.query_migrate_capabilities()


# ---- the source --------------------------------------------------------------------------------


class Sender:
    """The source's QEMU until the target has all the memory."""

    def __init__(
        self,
        vm: VM,
        find: Callable[[], Peer],
        job: Job,
        view: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._vm = vm
        self._find = find
        self._job = job
        self._view = view
        self._told = ""
        self._sent = -1
        self._moved = self._began = clock.monotonic()
        self._rate: tuple[float, int] | None = None

    async def run(self) -> MigrationInfo | None:
        """Until the target has all of it: QEMU's figures. Raises MemoryLost."""
        vm = self._vm
        try:
            with vm.qmp.session.listen("MIGRATION") as events:
                while True:
                    info = await vm.qmp.query_migrate()
                    if not is_sending(info.status):
                        return info if info.status == "completed" else None
                    self._report(info)
                    if not await self._goes_on(info, events):
                        return None
        except (QEMULost, VMLost) as error:
            await self._tell_lost()
            raise self._lost(f"its QEMU on the source ended: {vm.last_words()}") from error

    async def _goes_on(self, info: MigrationInfo, events: Events) -> bool:
        """Mend it if it is broken, and wait a moment; False: the target has all of it."""
        now = clock.monotonic()
        if info.transferred != self._sent:
            self._sent, self._moved = info.transferred, now
        if info.status == PAUSED or (info.status != ACTIVE and now - self._moved > STUCK_S):
            return await self._rejoin()
        if info.status == ACTIVE and now - self._moved > STUCK_S:
            self._moved = now
            self._log(f"nothing was sent for {STUCK_S:g} s: the connection is made anew")
            with contextlib.suppress(QMPError):
                await self._vm.qmp.migrate_pause()
        with contextlib.suppress(TimeoutError):
            await events.get(LOOK_S)
        return True

    async def _rejoin(self) -> bool:
        """The connection is broken: make a new one, until it works; False: no need of one."""
        pause, failed = RETRY_S, 0
        self._log("the connection is broken; the guest waits for what it lacks of its memory")
        while True:
            try:
                answer = await self._ask(has_pages=True, failed=failed)
                if answer.memory == "lost":
                    raise self._lost(answer.reason)
                if answer.memory == "waiting":
                    failed += 1  # until it is known to have come about
                    host = f"[{answer.address}]" if ":" in answer.address else answer.address
                    await self._vm.qmp.migrate_resume(f"tcp:{host}:{answer.port}")
                    if await self._has_resumed():
                        self._log("the connection is made anew")
                        self._told, self._moved = "", clock.monotonic()
                        return True
                elif answer.memory == "whole":
                    return False
            except (MemoryLost, QEMULost, VMLost):
                raise
            except SternaError as error:
                self._log(f"the memory cannot go on yet: {error.message}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)

    async def _has_resumed(self) -> bool:
        """Whether memory flows again. A connection that hangs before it does is cut."""
        with self._vm.qmp.session.listen("MIGRATION") as events:
            try:
                async with asyncio.timeout(RESUME_S):
                    has_begun = False
                    while (status := (await self._vm.qmp.query_migrate()).status) != ACTIVE:
                        if not is_sending(status):
                            return True
                        if status == PAUSED and has_begun:
                            return False
                        has_begun = status != PAUSED
                        with contextlib.suppress(TimeoutError):
                            await events.get(LOOK_S)
            except TimeoutError:
                if self._vm.process is not None:
                    pid = self._vm.process.pid
                    await asyncio.to_thread(cut_connections, pid, are_connecting=True)
                with contextlib.suppress(QMPError):
                    await self._vm.qmp.yank_migration()
                return False
        return True

    async def _ask(self, *, has_pages: bool, failed: int = 0) -> Rejoined:
        vm = self._vm
        epoch = vm.record.ownership.epoch
        wish = Rejoin(vm_id=vm.id, epoch=epoch, has_pages=has_pages, failed=failed)
        return await self._find().rejoin(wish)

    async def _tell_lost(self) -> None:
        """The target's guest would wait for ever for pages that nobody has."""
        pause = RETRY_S
        while True:
            try:
                await self._ask(has_pages=False)
            except SternaError as error:
                self._log(f"the target does not know yet that memory is lost: {error.message}")
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)

    async def tell_lost(self) -> MemoryLost:
        """The QEMU that had the pages is gone: tell the target, until it has heard it."""
        await self._tell_lost()
        return self._lost("its QEMU on the source had ended")

    def _lost(self, reason: str) -> MemoryLost:
        return MemoryLost(vm=self._vm.name, target=self._vm.record.ownership.peer, reason=reason)

    def _log(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._job.log(text, level="warning")

    def _report(self, info: MigrationInfo) -> None:
        now = clock.monotonic()
        then, before = self._rate or (now, info.transferred)
        self._rate = (now, info.transferred)
        sample = MemoryProgress(
            time_s=round(self._job.elapsed, 3),
            phase=Phase.POSTCOPY,
            transferred=info.transferred,
            remaining=info.remaining,
            total=info.total,
            rate=round((info.transferred - before) / (now - then)) if now > then else 0,
            rounds=info.rounds,
            bytes_wire=info.transferred,
            action="the guest runs on the target, the rest of its memory follows",
        )
        self._job.sample(replace(sample, **self._view()))


# ---- the target --------------------------------------------------------------------------------


async def arrive(vm: VM, source: str) -> None:
    """Until all memory of a VM that runs here already has arrived. Raises MemoryLost: it is off."""
    vm.lacks_memory = True
    try:
        with vm.qmp.session.listen("MIGRATION") as events:
            while is_sending(await _status(vm)):
                with contextlib.suppress(TimeoutError):
                    await events.get(10 * LOOK_S)
    except (QEMULost, VMLost) as error:
        await vm.ended.wait()
        reason = f"its QEMU ended before all of it had come from {source}"
        note = f"{clock.now()} {reason}: it is off, boot it from its disks, which are whole"
        with contextlib.suppress(SternaError):
            await vm.write(notes=(*vm.record.notes[-9:], note))
        raise MemoryLost(vm=vm.name, target="this host", reason=reason) from error
    finally:
        vm.lacks_memory = False


async def _status(vm: VM) -> str:
    """Of the migration. A main loop that does not answer waits for a page that never came."""
    try:
        return (await vm.qmp.query_migrate(timeout_s=BUSY_S)).status
    except QMPTimeout:
        return PAUSED


async def let_go(vm: VM) -> None:
    """Until the source has broken the connection. Raises QEMULost, VMLost."""
    with vm.qmp.session.listen("MIGRATION") as events:
        while (await vm.qmp.query_migrate()).status == ACTIVE:
            with contextlib.suppress(TimeoutError):
                await events.get(LOOK_S)


async def rejoin(vm: VM, address: str, wish: Rejoin) -> Rejoined:
    """The source asks for a new connection, or says that it has no pages any more.

    The connection is QEMU's own, by the key that both QEMUs have had since the target opened: a main
    loop that waits for a page takes no new one.
    """
    if vm.process is None:
        return Rejoined(memory="lost", reason=f"its QEMU has ended: {vm.last_words()}")
    status = await _status(vm)
    if not is_sending(status):
        return Rejoined(memory="whole")
    if not wish.has_pages:
        await vm.quit()
        return Rejoined(memory="lost", reason="the source has no pages of it any more")
    if status != PAUSED:
        with contextlib.suppress(QMPError):  # it has not noticed yet that nobody is there
            await vm.qmp.migrate_pause()
        return Rejoined(memory="arriving")
    host = f"[{address}]" if ":" in address else address
    before = listening_ports(vm.process.pid)
    await vm.qmp.migrate_recover(f"tcp:{host}:0")
    ports = listening_ports(vm.process.pid) - before
    if len(ports) != 1:
        raise Failed(detail=f"QEMU does not listen for the rest of {vm.name}'s memory")
    return Rejoined(memory="waiting", address=address, port=next(iter(ports)))
