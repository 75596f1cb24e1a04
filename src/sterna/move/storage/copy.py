"""The copies of one move of disks within a host: files as files, disks in use by QEMU's mirrors.

Promises: everything is a new file that the VM's record names as `made`; nothing that is there is
written to; `run` returns when each file is on the disk and each mirror keeps step with the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sterna.errors import FileCopyFailed, ImageFailed, VolumeExists
from sterna.host import storage as directories
from sterna.host.registry import Pools
from sterna.model.disk import Volume
from sterna.model.vm import VMRecord
from sterna.move.storage.disks import Switchover
from sterna.move.storage.files import carry
from sterna.move.storage.plan import Facts, Plan, Relocation, Transfer
from sterna.move.storage.progress import Progress
from sterna.operations.runner import Job
from sterna.qemu import image
from sterna.vms import chain
from sterna.vms.machine import VM

SAMPLE_S = 0.25


class Copies:
    """`templates` are those that the pools lack, to be set before `run`; `after` is the record to be."""

    def __init__(  # noqa: PLR0913 - what is copied, and how
        self,
        vm: VM,
        pools: Pools,
        plan: Plan,
        facts: Facts,
        *,
        job: Job,
        switchover: Switchover | None,
        parallel: int,
        speed: int,
        after: VMRecord,
    ) -> None:
        self.progress = Progress(job)
        self.templates: tuple[Transfer, ...] = ()
        self._vm = vm
        self._pools = pools
        self._plan = plan
        self._facts = facts
        self._switchover = switchover
        self._limit = asyncio.Semaphore(parallel)
        self._speed = speed
        self._after = after

    async def run(self, executor: ThreadPoolExecutor) -> None:
        """Raises what went wrong first, in an ExceptionGroup."""
        self._expect()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            async with asyncio.TaskGroup() as copies:
                for item in (*self.templates, *self._plan.states):
                    copies.create_task(self._file(item, executor))
                for one in self._plan.relocations:
                    copies.create_task(self._disk(one, executor))
            watching.cancel()
        for pool in {volume.pool for volume in self._plan.new}:
            await asyncio.to_thread(self._sync, pool)
        self.progress.show()

    def _expect(self) -> None:
        """Every part, by its name: that of the file, or of the disk whose top is mirrored."""
        for item in (*self.templates, *self._plan.frozen):
            size, _ = self._facts.sizes.get(item.source, (0, 0))
            self.progress.expect(str(item.target), item.disk, size)
        for one in self._plan.relocations:
            self.progress.expect(one.disk.name, one.disk.name, self._facts.virtual[one.disk.name])

    async def _watch(self) -> None:
        """Show how far it is; fail as soon as a mirror has failed."""
        while True:
            if self._switchover is not None:
                for disk, (done, total, is_ready) in (await self._switchover.progress()).items():
                    self.progress.mirrored(disk, done, total, is_ready=is_ready)
            self.progress.show()
            await asyncio.sleep(SAMPLE_S)

    async def _disk(self, one: Relocation, executor: ThreadPoolExecutor) -> None:
        """All images of one disk; of a running VM until its top is in step with the guest."""
        for image_below in one.base:
            await self.progress.wait(f"{one.there.pool}/{image_below.volume}")
        for item in self._plan.frozen:
            if item.disk == one.disk.name:
                await self._file(item, executor)
        async with self._limit:
            if self._switchover is None:
                await self._top(one, executor)
                return
            images = chain.images(self._after, one.there)
            rests = images[1] if len(images) > 1 else None
            size = self._facts.virtual[one.disk.name]
            async with self._creating(one.top):
                await image.create(self._path(one.top), one.there.format, size, rests)
            await self._switchover.mirror(one)
            await self.progress.wait(one.disk.name)

    async def _file(self, item: Transfer, executor: ThreadPoolExecutor) -> None:
        async with self._limit:
            await self._carry(item, executor, str(item.target))

    async def _carry(self, item: Transfer, executor: ThreadPoolExecutor, name: str) -> None:
        async with self._creating(item.target):
            await carry(
                self._path(item.source),
                self._path(item.target),
                executor=executor,
                copied=self.progress.counter(name),
                speed=self._speed,
            )
        self.progress.through(name)

    async def _top(self, one: Relocation, executor: ThreadPoolExecutor) -> None:
        """The image that a VM that is off would write: as it is, or as another kind."""
        source = Volume(pool=one.disk.pool, volume=one.disk.volume)
        if one.there.format == one.disk.format and one.there.base == one.disk.base:
            item = Transfer(source=source, target=one.top, disk=one.disk.name)
            await self._carry(item, executor, one.disk.name)
            return
        old, new = self._path(source), self._path(one.top)
        formats = (one.disk.format, one.there.format)
        async with self._creating(one.top):
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        await image.fill(old, new, formats, self._speed)
        if not await image.compare(old, new, formats):
            raise FileCopyFailed(source=old, target=new, reason="they differ, though just copied")
        self.progress.through(one.disk.name)

    @contextlib.asynccontextmanager
    async def _creating(self, volume: Volume) -> AsyncIterator[None]:
        """A file that somebody else has made in this very moment is theirs: no undo removes it."""
        try:
            yield
        except (FileExistsError, FileCopyFailed, ImageFailed) as error:
            if not isinstance(error, FileExistsError) and not isinstance(
                error.__cause__, FileExistsError
            ):
                raise
            await self._vm.write(made=tuple(one for one in self._vm.record.made if one != volume))
            raise self._exists(volume) from error

    def _sync(self, pool: str) -> None:
        directories.sync_directory(self._pools.require(pool))

    def _path(self, volume: Volume) -> Path:
        return self._pools.volume_path(volume.pool, volume.volume)

    def _exists(self, volume: Volume) -> VolumeExists:
        return VolumeExists(path=self._path(volume), pool=volume.pool, volume=volume.volume)
