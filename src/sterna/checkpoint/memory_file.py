"""The memory of a guest, in a file: a move whose target is a file.

The same rounds as for another host, so the guest stands still no longer than in a move. The file is
called `.part` until all of it is on the disk and its hash is known; both names are in the record
(`made`) before there is a file.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sterna import clock
from sterna.errors import ImageFailed, NoPoolForMemory, NoRoom, QEMULost, QMPTimeout, VMLost
from sterna.host.registry import Pools
from sterna.model.disk import StateFile, Volume
from sterna.model.move import MemoryProgress, MoveWishes
from sterna.model.vm import VMRecord
from sterna.move import capabilities, memory
from sterna.operations.runner import Job
from sterna.vms.launch import Launcher
from sterna.vms.machine import QUIT_TIMEOUT_S, VM
from sterna.vms.saved import FD, digest

# No target answers, so there is no return-path; the stop before the end is what undo rests on.
CAPABILITIES = frozenset({"events", "pause-before-switchover"})
PART = ".part"
GROWTH = 2  # times the guest's memory: then a longer pause is better than a larger file
LONGEST_MS = 2_000_000  # QEMU's own limit of a pause
PRESS_S = 0.5  # between two orders to end the rounds
LAST_COPY_S = 60.0  # of what is left when the guest stands still, at least
FINALIZED_S = 10.0  # after the last byte; QEMU needs a millisecond, if it gets a processor
FINALIZED_POLL_S = 0.002
BYTES_S = 20 << 20  # slower than any disk that works


def pool_of(record: VMRecord, pools: Pools, host: str) -> str:
    """Where a VM's memory goes: the pool of its first disk. Raises NoPoolForMemory."""
    if record.spec.disks:
        return record.spec.disks[0].pool
    names = [pool.name for pool in pools.list()]
    if "default" in names:
        return "default"
    if len(names) == 1:
        return names[0]
    reason = f"it could be in any of {', '.join(names)}" if names else "it has none at all"
    raise NoPoolForMemory(vm=record.spec.name, host=host, reason=reason)


class MemoryFile:
    """One file being made. `volumes` belong into the record's `made` before `fill`."""

    def __init__(self, vm: VM, launcher: Launcher, name: str) -> None:
        self._vm = vm
        self._launcher = launcher
        pool = pool_of(vm.record, launcher.pools, launcher.host)
        self.place = Volume(pool=pool, volume=f"{name}.mem")
        self.part = Volume(pool=pool, volume=f"{name}.mem{PART}")
        self.accel: Literal["kvm", "tcg"] = (
            vm.record.process.accel if vm.record.process else launcher.accel
        )

    @property
    def volumes(self) -> tuple[Volume, ...]:
        return self.part, self.place

    def path(self, volume: Volume) -> Path:
        return self._launcher.pools.volume_path(volume.pool, volume.volume)

    async def require_room(self) -> None:
        """Raises NoRoom, PoolUnusable: the memory would not fit even once."""
        self._launcher.pools.require(self.place.pool)
        facts = await self._launcher.pools.facts_of(self.place.pool)
        needed = self._vm.record.spec.memory
        if facts.free < needed:
            raise NoRoom(
                vm=self._vm.name,
                needed=needed,
                pool=self.place.pool,
                host=self._launcher.host,
                free=facts.free,
            )

    async def fill(self, max_downtime_ms: int, job: Job) -> float:
        """Until the guest is stopped with all but the last of its memory written; when it stopped.

        Raises what `memory.precopy` does; the caller undoes with `memory.abort`.
        """
        qmp = self._vm.qmp
        wishes = MoveWishes(target=self.place.volume, max_downtime_ms=max_downtime_ms)
        wanted = capabilities.settings(
            CAPABILITIES, self._launcher.capabilities.migration_capabilities, self._launcher.host
        )
        await memory.prepare(qmp, wishes, dict(wanted))
        await qmp.migrate_set_parameters(**{"tls-creds": ""})  # a move may have left its own
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = await asyncio.to_thread(os.open, self.path(self.part), flags, 0o600)
        try:
            await qmp.give_fd(FD, fd)
        finally:
            os.close(fd)
        is_large = asyncio.Event()

        def report(sample: MemoryProgress) -> None:
            job.sample(sample)
            if sample.total and sample.transferred > GROWTH * sample.total:
                is_large.set()

        async with asyncio.TaskGroup() as group:
            pressing = group.create_task(self._press(is_large, job))
            try:
                state = await memory.precopy(qmp, f"fd:{FD}", wishes, report)
            finally:
                pressing.cancel()
        return state.stopped or clock.monotonic()

    async def _press(self, is_large: asyncio.Event, job: Job) -> None:
        """The guest dirties memory faster than the file takes it: stop it for the rest."""
        await is_large.wait()
        job.warn(
            f"{self._vm.name} changes its memory faster than {self.place} takes it; it stands "
            f"still for longer than was wished"
        )
        while True:
            await self._vm.qmp.migrate_set_parameters(**{"downtime-limit": LONGEST_MS})
            await asyncio.sleep(PRESS_S)

    async def finish(self) -> None:
        """The rest, with the guest stopped: QEMU's migration is `completed` then."""
        deadline_s = LAST_COPY_S + self._vm.record.spec.memory / BYTES_S
        await memory.switch_over(self._vm.qmp, deadline_s)
        await _finalized(self._vm)

    async def seal(self) -> StateFile:
        """Durable, hashed, under its name. Raises ImageFailed."""
        try:
            size, found = await asyncio.to_thread(self._seal)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ImageFailed(action="keep", path=self.path(self.place), reason=reason) from error
        return StateFile(
            pool=self.place.pool,
            volume=self.place.volume,
            size=size,
            sha256=found,
            accel=self.accel,
            machine=self._vm.record.spec.machine,
            cpu=self._vm.record.spec.processor.text,
        )

    def _seal(self) -> tuple[int, str]:
        part, path = self.path(self.part), self.path(self.place)
        _sync(part)
        found = digest(part)
        part.rename(path)
        _sync(path.parent)
        return found

    async def link(self, state: StateFile) -> StateFile:
        """The memory of a saved VM, under this name too: one file for both. Raises ImageFailed."""
        source, path = self.path(state.place), self.path(self.place)
        try:
            await asyncio.to_thread(os.link, source, path)
            await asyncio.to_thread(_sync, path.parent)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ImageFailed(action="keep", path=path, reason=reason) from error
        return replace(state, pool=self.place.pool, volume=self.place.volume)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _finalized(vm: VM) -> None:
    """QEMU says `completed` a moment before it lets the guest go on (7.2: it refuses `cont`)."""
    deadline = clock.monotonic() + FINALIZED_S
    while await vm.qmp.query_status() == "finish-migrate":  # no event tells
        if clock.monotonic() > deadline:
            what = "the end of its migration"
            raise QMPTimeout(name=vm.name, command=what, seconds=FINALIZED_S)
        await asyncio.sleep(FINALIZED_POLL_S)


async def end(vm: VM) -> None:
    """End a writing of memory that may be under way, and let the guest go on as recorded.

    A QEMU that is gone has ended it by itself: then it is off.
    """
    try:
        status = (await vm.qmp.query_migrate()).status
        if status not in memory.ENDED | {"none", ""}:
            await memory.abort(vm.qmp)
        await _finalized(vm)
        await vm.resume_as_recorded()
    except (QEMULost, VMLost):
        async with asyncio.timeout(QUIT_TIMEOUT_S):
            await vm.ended.wait()
