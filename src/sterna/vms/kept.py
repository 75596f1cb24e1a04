"""Copies that a move left behind on purpose: under another name, with a label, until they expire.

Promises: a file is either the VM's own, kept, or gone, never lost track of, whenever the daemon
dies. So the wish to keep (`intend`) is durable before the record that gives the files up, and
`clear` does what was wished, however often it is asked. A kept file is renamed within its pool,
which costs nothing, and is deleted when it expires. An overlay goes on naming what it rested on by
the former name: who wants a chain back gives all its files their former names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sterna import clock
from sterna.errors import KeptInUse, KeptNotFound, SternaError
from sterna.host import storage
from sterna.host.registry import Pools
from sterna.host.store import Damaged, Store
from sterna.model.disk import STRICT, Volume
from sterna.model.move import LONGEST_DAYS

log = logging.getLogger(__name__)

JANITOR_S = 3600.0  # days are what people ask for
DAY_S = 86400.0
LONGEST_NAME = 200  # bytes of a former name within the new one


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """One file: what it was, and what it is called now. Both are in the same pool."""

    __pydantic_config__ = STRICT

    was: Volume
    now: str  # plain file name


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCopy:
    """What one move left of one VM. With `is_intended` the files may still have their old names."""

    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    id: str  # 8 hex digits
    vm: str
    vm_id: str
    label: str  # for people: why it is here
    created: str
    expires: str
    files: tuple[KeptFile, ...]
    is_intended: bool = False


class Kept:
    """The kept copies of this host. `load` before anything else.

    `used_but_by`: the files that all VMs but that of this id have or rest on. None of them is ever
    renamed or deleted here, whoever asks: a template that a move made may be shared by now.
    `leaving_of`: the files that a VM has given up for good and that are not gone yet.
    """

    def __init__(
        self,
        directory: Path,
        pools: Pools,
        used_but_by: Callable[[str], Collection[Volume]] = lambda _vm_id: (),
        leaving_of: Callable[[str], Collection[Volume]] = lambda _vm_id: (),
    ) -> None:
        self.damaged: list[Damaged] = []
        self.used_but_by = used_but_by
        self._leaving_of = leaving_of
        self._store = Store(directory, KeptCopy, key_of=lambda copy: copy.id)
        self._pools = pools
        self._copies: dict[str, KeptCopy] = {}

    def load(self) -> list[Damaged]:
        """Read the records; what is damaged, set aside."""
        self._copies, self.damaged = self._store.load()
        return self.damaged

    def list(self) -> list[KeptCopy]:
        """All that is kept, the oldest first."""
        settled = (copy for copy in self._copies.values() if not copy.is_intended)
        return sorted(settled, key=lambda copy: (copy.created, copy.id))

    def users_of_pool(self, pool: str) -> frozenset[str]:
        """Names of the VMs of which copies are kept there."""
        return frozenset(
            copy.vm
            for copy in self._copies.values()
            if any(file.was.pool == pool for file in copy.files)
        )

    def copy_of(self, vm_id: str, volume: Volume) -> Path | None:
        """The newest copy that is kept of what was this volume of this VM."""
        for copy in reversed(self.list()):
            for file in copy.files:
                if copy.vm_id == vm_id and file.was == volume:
                    path = self._pools.volume_path(volume.pool, file.now)
                    return path if path.is_file() else None
        return None

    # ---- keeping ---------------------------------------------------------------------------

    async def intend(
        self, vm: str, vm_id: str, volumes: Iterable[Volume], label: str, days: float
    ) -> None:
        """Durably: when these files leave, they are to be kept. Replaces earlier wishes for them.

        Called before the record that lets them leave; `forsake` takes it back.
        """
        await self.forsake(vm_id)
        made = KeptCopy(
            id=secrets.token_hex(4),
            vm=vm,
            vm_id=vm_id,
            label=label,
            created=clock.now(),
            expires=clock.later(min(days, LONGEST_DAYS) * DAY_S),
            files=tuple(KeptFile(was=volume, now=_name(volume.volume)) for volume in volumes),
            is_intended=True,
        )
        await self._store.write(made.id, made)
        self._copies[made.id] = made

    async def keep(
        self, vm: str, vm_id: str, volumes: Sequence[Volume], label: str, days: float
    ) -> None:
        """`intend` and `clear` at once, for files that nothing uses any more."""
        await self.intend(vm, vm_id, volumes, label, days)
        await self.clear(vm_id, volumes)

    async def clear(self, vm_id: str, leaving: Sequence[Volume]) -> None:
        """The files of a VM that leave: renamed if they are to be kept, else deleted.

        Gone or renamed already is fine. Raises PoolUnusable, StateNotWritten: ask again later.
        """
        wished = {
            file.was: (copy, file)
            for copy in self._copies.values()
            if copy.vm_id == vm_id and copy.is_intended
            for file in copy.files
        }
        used = self.used_but_by(vm_id)
        for volume in leaving:
            if volume in used:
                log.warning("%s stays: another VM uses it", volume)
            elif volume in wished:
                await asyncio.to_thread(self._rename, wished[volume][1])
            else:
                await self._pools.delete_volume(volume.pool, volume.volume)
        for pool in {volume.pool for volume in leaving}:
            await asyncio.to_thread(self._sync, pool)
        for copy in {copy.id: copy for copy, _ in wished.values()}.values():
            await self._settle(copy, used)

    async def forsake(self, vm_id: str) -> None:
        """Nothing more of this VM leaves: its intentions are void, but for what it has given up."""
        leaving = set(self._leaving_of(vm_id))
        for copy in list(self._copies.values()):
            is_open = any(file.was in leaving for file in copy.files)
            if copy.vm_id == vm_id and copy.is_intended and not is_open:
                await self._store.delete(copy.id)
                del self._copies[copy.id]

    async def _settle(self, copy: KeptCopy, used: Collection[Volume]) -> None:
        """Say that the renames are through, unless a file has its old name yet, or may have.

        QEMU has it open, or its pool is away.
        """
        places = [file.was for file in copy.files if file.was not in used]

        def is_there(place: Volume) -> bool:
            try:
                pool = self._pools.require(place.pool)
            except SternaError:
                return True  # nobody knows
            return storage.volume_path(pool, place.volume).exists()

        if await asyncio.to_thread(lambda: any(map(is_there, places))):
            return
        settled = replace(copy, is_intended=False)
        await self._store.write(copy.id, settled)
        self._copies[copy.id] = settled
        log.info("kept %d files of %s until %s", len(copy.files), copy.vm, copy.expires)

    def _sync(self, pool: str) -> None:
        storage.sync_directory(self._pools.require(pool))

    def _rename(self, file: KeptFile) -> None:
        pool = self._pools.require(file.was.pool)
        old = storage.volume_path(pool, file.was.volume)
        with contextlib.suppress(FileNotFoundError):
            old.rename(storage.volume_path(pool, file.now))

    # ---- letting go ------------------------------------------------------------------------

    async def discard(self, copy_id: str) -> None:
        """Delete a kept copy. Raises KeptNotFound, KeptInUse, PoolUnusable."""
        copy = self._copies.get(copy_id)
        if copy is None or copy.is_intended:
            raise KeptNotFound(copy=copy_id)
        used = self.used_but_by("")
        for file in copy.files:
            if (place := Volume(pool=file.was.pool, volume=file.now)) in used:
                raise KeptInUse(copy=copy_id, place=place)
        for file in copy.files:
            await self._pools.delete_volume(file.was.pool, file.now)
        await self._store.delete(copy_id)
        self._copies.pop(copy_id, None)
        log.info("kept copy %s of %s was deleted", copy_id, copy.vm)

    async def expire(self) -> None:
        """Delete what has expired; what cannot be deleted now is tried again the next time."""
        now = clock.now()
        for copy in self.list():
            if copy.expires <= now:
                try:
                    await self.discard(copy.id)
                except SternaError as error:
                    log.warning("kept copy %s of %s: %s", copy.id, copy.vm, error)

    async def janitor(self) -> None:
        """`expire`, now and every hour."""
        while True:
            await self.expire()
            await asyncio.sleep(JANITOR_S)


def _name(volume: str) -> str:
    stem = volume.encode()[:LONGEST_NAME].decode(errors="ignore")
    return f"{stem}.kept-{clock.now()[:10].replace('-', '')}-{secrets.token_hex(2)}"
