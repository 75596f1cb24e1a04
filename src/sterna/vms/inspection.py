"""All images of this host inspected, when somebody asks; and noted, so that a change is seen later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.errors import SternaError
from sterna.model.check import Severity
from sterna.model.disk import STRICT, Volume
from sterna.model.edge import dump
from sterna.model.host import Pool
from sterna.model.vm import OwnershipState
from sterna.vms import chain
from sterna.vms.inspect import TOP, Found, Inspector, is_endless, links, since
from sterna.vms.machine import VM
from sterna.vms.service import VMs
from sterna.vms.witnessed import Sight, Witnessed

log = logging.getLogger(__name__)

NOTE_S = 3600.0  # a change is seen if the image was older than that
SUFFIXES = frozenset({".qcow2", ".raw", ".mem", ".part"})
_RANK = {Severity.BLOCKER: 0, Severity.WARNING: 1, Severity.INFO: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckWishes:
    """Body of POST /v1/disk-check. Without VMs and pool: everything of the host."""

    __pydantic_config__ = STRICT

    vms: tuple[str, ...] = ()  # names or ids
    pool: str = ""  # the VMs with anything there, and files there that belong to nobody
    is_deep: bool = False  # read saved memory too, and compare it with its hash
    trust: bool = False  # what looks changed is taken for what it was


class Inspections:
    """Of one host."""

    def __init__(self, vms: VMs) -> None:
        self._vms = vms
        self._pools = vms.launcher.pools
        self._witnessed = Witnessed(vms.config.state_dir / "cache" / "frozen.json")

    async def run(self, wishes: CheckWishes) -> dict[str, Any]:
        """Report of all that was asked for. Raises VMNotFound, VMDamaged, PoolNotFound."""
        if wishes.pool:
            self._pools.get(wishes.pool)
        asked = [self._vms.get(ref) for ref in wishes.vms] or [*self._here()]
        if wishes.pool:
            asked = [vm for vm in asked if wishes.pool in chain.pools(vm.record)]
        found: list[Found] = []
        images = 0
        for vm in asked:
            if wishes.trust:
                self._trust(vm)
            new, count = await self._inspect(vm, is_deep=wishes.is_deep)
            found, images = found + new, images + count
        if not wishes.vms:
            found += await self._unused(wishes.pool)
        await self._keep()
        worst = min((_RANK[one.severity] for one in found), default=2)
        return {
            "vms": [vm.name for vm in asked],
            "images": images,
            "outcome": ("broken", "warned", "well")[worst],
            "findings": [dump(one) for one in found],
        }

    async def glance(self, vm: VM, tables_s: float) -> list[Found]:
        """What is wrong with the images of one VM, as far as can be seen in so many seconds."""
        inspector = Inspector(vm.record, self._vms.launcher, self._witnessed, tables_s=tables_s)
        return await inspector.run()

    async def note(self) -> None:
        """Without end: what is frozen is noted when it is new."""
        await asyncio.to_thread(self._witnessed.load)
        while True:
            for vm in [vm for vm in self._here() if not vm.doing]:
                await asyncio.to_thread(self._note, vm)
            await self._keep()
            await asyncio.sleep(NOTE_S)

    # ---- VMs ---------------------------------------------------------------------------------

    def _here(self) -> Iterator[VM]:
        owned = (OwnershipState.OWNED, OwnershipState.YIELDING)
        return (vm for vm in self._vms.all() if vm.record.ownership.state in owned)

    async def _inspect(self, vm: VM, *, is_deep: bool) -> tuple[list[Found], int]:
        before, doing = vm.record, vm.doing
        inspector = Inspector(before, self._vms.launcher, self._witnessed, is_deep=is_deep)
        found = [] if doing else await inspector.run()
        after = vm.record
        same = (before.spec, before.checkpoints, before.saved) == (
            after.spec,
            after.checkpoints,
            after.saved,
        )
        if doing or vm.doing or not same:
            return [
                Found(
                    id="disk.busy",
                    severity=Severity.INFO,
                    finding=f"{vm.name} was not checked: it is {doing or vm.doing or 'changing'}",
                    fix="Ask again when that has ended",
                    vm=vm.name,
                )
            ], 0
        return found, inspector.images

    def _frozen(self, vm: VM) -> Iterator[tuple[Volume, str]]:
        if is_endless(vm.record):
            return
        for disk in vm.record.spec.disks:
            for link in links(vm.record, disk):
                if link.frozen_by != TOP:
                    yield Volume(pool=disk.pool, volume=link.image.volume), since(vm.record, link)

    def _note(self, vm: VM) -> None:
        for place, frozen_by in self._frozen(vm):
            with contextlib.suppress(OSError, SternaError):  # a check will say so
                path = self._pools.volume_path(place.pool, place.volume)
                self._witnessed.first(place, frozen_by, Sight.of(path))

    def _trust(self, vm: VM) -> None:
        for place, _ in self._frozen(vm):
            self._witnessed.forget(place)

    async def _keep(self) -> None:
        frozen = [one for vm in self._here() for one in self._frozen(vm)]
        try:
            await asyncio.to_thread(self._witnessed.keep, frozen)
        except OSError as error:
            log.warning("what frozen images look like was not noted: %s", error)

    # ---- files of nobody ---------------------------------------------------------------------

    async def _unused(self, only: str) -> list[Found]:
        """Files that look like ours and that nothing of this host uses. Never a reason to fail.

        A shared pool has files of other hosts, and a VM whose record is damaged has files too.
        """
        if self._vms.damaged:
            return []
        used = self._used()
        found: list[Found] = []
        for pool in self._pools.list():
            if pool.shared or (only and pool.name != only):
                continue
            facts = await self._pools.facts_of(pool.name)
            names = [] if facts.problem else await asyncio.to_thread(_files, pool)
            found += [
                Found(
                    id="disk.unused",
                    severity=Severity.INFO,
                    finding=f"nothing on this host uses {Path(pool.path) / name}",
                    fix="If you do not need it either, delete it",
                    place=f"{pool.name}/{name}",
                )
                for name in names
                if (pool.name, name) not in used
            ]
        return found

    def _used(self) -> set[tuple[str, str]]:
        files: set[tuple[str, str]] = set()
        for vm in self._vms.all():
            record = vm.record
            of_moves = (*record.made, *record.departing, *record.leaving)
            own = chain.own_files(record) if vm.is_here and not is_endless(record) else ()
            files |= {(one.pool, one.volume) for one in (*of_moves, *own)}
            files |= {
                (disk.pool, base.volume)
                for disk in record.spec.disks
                if vm.is_here
                for base in disk.base
            }
            files |= {(one.pool, one.volume) for one in chain.media(record.spec) if vm.is_here}
        for copy in self._vms.kept.list():
            files |= {
                (file.was.pool, name) for file in copy.files for name in (file.now, file.was.volume)
            }
        return files


def _files(pool: Pool) -> list[str]:
    try:
        return sorted(
            entry.name
            for entry in Path(pool.path).iterdir()
            if entry.suffix in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        )
    except OSError:
        return []
