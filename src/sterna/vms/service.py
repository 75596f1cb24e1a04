"""The VMs of this host: all that users do with one, except moving it.

Every action is refused while another holds the VM's lease, checks before it changes anything, and
undoes what it began if it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sterna import clock
from sterna.config import Config
from sterna.errors import (
    HostDraining,
    ImageFailed,
    ImageMissing,
    QEMULost,
    SternaError,
    VMBusy,
    VMDamaged,
    VMExists,
    VMFilesLeft,
    VMLost,
    VMNotFound,
    VMStartFailed,
    VMWrongState,
    VolumeExists,
)
from sterna.host.store import Damaged, Store
from sterna.model.disk import Volume
from sterna.model.operation import Operation
from sterna.model.settings import HostSettings, preferred
from sterna.model.vm import (
    Disk,
    Ownership,
    OwnershipState,
    RunState,
    VMRecord,
    VMSpec,
)
from sterna.operations.runner import Job, Runner
from sterna.qemu import image
from sterna.vms import chain, change, media, saved, volumes
from sterna.vms.kept import Kept
from sterna.vms.launch import Launcher
from sterna.vms.machine import VM
from sterna.vms.specify import complete
from sterna.vms.view import view

log = logging.getLogger(__name__)

PRESS_AGAIN_S = 10.0  # longer than a guest needs to notice, shorter than its user's patience


class VMs:
    """Registry of this host's VMs, tombstones of VMs that moved away included."""

    def __init__(self, config: Config, launcher: Launcher, runner: Runner) -> None:
        self.config = config
        self.launcher = launcher
        self.runner = runner
        self.settings: Callable[[], HostSettings] = HostSettings  # for moves; those of now
        self.kept = Kept(
            config.state_dir / "kept", launcher.pools, self._used_but_by, self._leaving_of
        )
        self.store: Store[VMRecord] = Store(config.state_dir / "vms", VMRecord)
        self.damaged: list[Damaged] = []
        self.is_draining: Callable[[], bool] = lambda: False  # the host: it starts no VM then
        self._vms: dict[str, VM] = {}

    @property
    def migration_addresses(self) -> tuple[str, ...]:
        """Of this host, those that moves may use now, the preferred one first."""
        return preferred(self.config.migration_addresses, self.settings().migration_networks)

    # ---- finding ---------------------------------------------------------------------------

    def load(self) -> list[VM]:
        """Read all records; the damaged are set aside by the store and reported by us."""
        records, self.damaged = self.store.load()
        self._vms = {key: self.handle(record) for key, record in records.items()}
        return list(self._vms.values())

    def handle(self, record: VMRecord) -> VM:
        """A handle for `record`; `adopt` makes it known."""
        return VM(record, self.store, self.config.run_dir / "vms" / record.spec.id)

    def adopt(self, vm: VM) -> None:
        """From now on `vm` is one of this host's."""
        self._vms[vm.id] = vm

    def forget(self, vm: VM) -> None:
        """It is none of this host's any more."""
        if self._vms.get(vm.id) is vm:
            del self._vms[vm.id]

    def all(self) -> Iterator[VM]:
        """All handles, tombstones included."""
        return iter(list(self._vms.values()))

    def by_id(self, vm_id: str) -> VM | None:
        """The handle of that id, be it a tombstone; None if there is none."""
        return self._vms.get(vm_id)

    def get(self, ref: str) -> VM:
        """The VM called `ref`, or with that id. Raises VMNotFound, VMDamaged."""
        for vm in self._vms.values():
            if vm.is_here and ref in (vm.name, vm.id):
                return vm
        for damaged in self.damaged:
            if ref == damaged.key:
                raise VMDamaged(
                    vm=ref, host=self.config.name, path=damaged.path, reason=damaged.reason
                )
        raise VMNotFound(vm=ref, host=self.config.name)

    def find(self, name: str) -> VM | None:
        """The VM of that name that is here, if any."""
        return next((vm for vm in self._vms.values() if vm.is_here and vm.name == name), None)

    def users_of_pool(self, pool: str) -> list[str]:
        """Names of the VMs with a file or a CD there, or of which copies are kept there.

        Also of those that have left but for a file that could not be removed yet.
        """

        def files(vm: VM) -> Iterator[Volume]:
            if vm.is_here:
                yield from (*chain.own_files(vm.record), *chain.media(vm.record.spec))
            yield from (*vm.record.made, *vm.record.departing, *vm.record.leaving)

        using = {
            vm.name for vm in self._vms.values() if any(file.pool == pool for file in files(vm))
        }
        return sorted(using.union(self.kept.users_of_pool(pool)))

    def _leaving_of(self, vm_id: str) -> Sequence[Volume]:
        vm = self._vms.get(vm_id)
        return () if vm is None else vm.record.leaving

    def users_of_switch(self, switch: str) -> list[str]:
        """Names of the VMs plugged in there."""
        return [
            vm.name
            for vm in self._vms.values()
            if vm.is_here and any(nic.switch == switch for nic in vm.record.spec.nics)
        ]

    def running_on_switch(self, switch: str) -> list[str]:
        """Names of those that run."""
        using = set(self.users_of_switch(switch))
        return [vm.name for vm in self._vms.values() if vm.name in using and vm.process]

    # ---- showing ---------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        """Views of all VMs, damaged ones included, by name."""
        views = [view(vm, self.config.name) for vm in self._vms.values() if vm.is_here]
        views += [
            {
                "name": damaged.key,
                "id": damaged.key,
                "state": RunState.DAMAGED,
                "host": self.config.name,
                "spec": None,
                "ownership": None,
                "operation": "",
                "process": None,
                "console": "",
                "vnc": "",
                "notes": [],
                "checkpoints": [],
                "at": "",
                "saved": None,
                "damaged": {"path": str(damaged.path), "reason": damaged.reason},
            }
            for damaged in self.damaged
        ]
        return sorted(views, key=lambda item: str(item["name"]))

    def view(self, ref: str) -> dict[str, Any]:
        """View of one VM."""
        return view(self.get(ref), self.config.name)

    # ---- creating and deleting -------------------------------------------------------------

    async def create(self, spec: VMSpec) -> dict[str, Any]:
        """Define a VM and make its disks; it is off. Undoes all if a part fails."""
        capabilities = self.launcher.capabilities
        spec = complete(
            spec,
            machines=capabilities.machines,
            newest=capabilities.default_machine,
            host=self.config.name,
        )
        self.launcher.require_processor(spec.name, spec.processor)
        await asyncio.to_thread(self._check_new, spec)
        spec = await volumes.resolve(spec, self.launcher.pools, self.config.name)
        for medium in chain.media(spec):
            await media.require_readable(spec.name, medium, self.launcher.pools)
        self.require_unused(spec)
        if self.find(spec.name) is not None or spec.id in self._vms:
            raise VMExists(vm=spec.name, host=self.config.name)
        record = VMRecord(
            spec=replace(spec, disks=tuple(replace(disk, image="") for disk in spec.disks)),
            ownership=Ownership(state=OwnershipState.OWNED, epoch=1),
            created=clock.now(),
            protector=self.launcher.tpms.protector(spec),
        )
        vm = self.handle(record)
        self.adopt(vm)  # holds the name while disks are made
        with vm.lease("being created"):
            try:
                async with self._new_files(spec):
                    self.launcher.check_files(record)
                    await self.store.write(vm.id, record)
            except BaseException:
                self.forget(vm)
                raise
        log.info("VM %s (%s) was created", spec.name, spec.id)
        return view(vm, self.config.name)

    def require_unused(self, spec: VMSpec) -> None:
        """No disk of `spec` is another's or about to be deleted, and nobody writes to its CDs.

        Raises VolumeRefused, MediumRefused.
        """
        used = self.used()
        volumes.require_unused(spec, used, self.launcher.pools)
        disks = [Volume(pool=disk.pool, volume=disk.volume) for disk in spec.disks]
        media.require_unwritten(spec.name, chain.media(spec), used, disks)

    def used(self) -> dict[Volume, volumes.Use]:
        """All files that VMs of this host use, or that are about to be deleted."""
        used = {
            place: volumes.Use(vm=vm.name, is_own=True, leaves=f"{vm.name} has left it behind")
            for vm in self._vms.values()
            if not vm.is_here
            for place in (*vm.record.made, *vm.record.departing, *vm.record.leaving)
        }
        for copy in self.kept.list():
            reason = f"it is the kept copy {copy.id} of {copy.vm}, and goes when that expires"
            for file in copy.files:
                place = Volume(pool=file.was.pool, volume=file.now)
                used[place] = volumes.Use(vm=copy.vm, is_own=True, leaves=reason)
        return used | volumes.uses(vm.record for vm in self._vms.values() if vm.is_here)

    def _used_but_by(self, vm_id: str) -> frozenset[Volume]:
        """The files that all other VMs here have, rest on or read: those may be shared."""
        others = (vm.record for vm in self._vms.values() if vm.is_here and vm.id != vm_id)
        return frozenset(
            place
            for record in others
            for place in (
                *chain.own_files(record),
                *(
                    Volume(pool=disk.pool, volume=base.volume)
                    for disk in record.spec.disks
                    for base in disk.base
                ),
                *chain.media(record.spec),
            )
        )

    def _check_new(self, spec: VMSpec) -> None:
        for nic in spec.nics:
            self.launcher.switches.require(nic.switch, nic.vlan, nic.trunk)
        for disk in spec.disks:
            self.launcher.pools.require(disk.pool)
            path = self.launcher.pools.volume_path(disk.pool, disk.volume)
            if (disk.size or disk.image) and path.exists():
                raise VolumeExists(path=path, pool=disk.pool, volume=disk.volume)
            if disk.image and not Path(disk.image).is_file():
                raise ImageMissing(what="image", path=disk.image, host=self.config.name)

    @asynccontextmanager
    async def _new_files(self, spec: VMSpec) -> AsyncIterator[None]:
        """Disks and UEFI variables of a new VM; removed again if the body or a disk fails."""
        made: list[Path] = []
        try:
            for disk in spec.disks:
                if disk.size or disk.image:
                    path = self.launcher.pools.volume_path(disk.pool, disk.volume)
                    made.append(path)
                    try:
                        await self._make_disk(disk, path)
                    except ImageFailed as error:
                        if isinstance(error.__cause__, FileExistsError):  # somebody else's
                            made.remove(path)
                        raise
            if (firmware := self.launcher.firmware(spec)) is not None:
                made.append(firmware.variables)
                firmware.variables.parent.mkdir(parents=True, exist_ok=True)
                await asyncio.to_thread(shutil.copyfile, firmware.template, firmware.variables)
            yield
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise

    async def _make_disk(self, disk: Disk, path: Path) -> None:
        if disk.image:
            await image.convert(Path(disk.image), path, disk.format, disk.size)
        elif disk.size:
            below = disk.base[0] if disk.base else None
            await image.create(path, disk.format, disk.size, below)

    async def delete(self, ref: str, keep_disks: bool = False) -> None:
        """Delete a VM that is off, with its disks unless they are to be kept. Raises VMFilesLeft."""
        vm = self.get(ref)
        self.require_idle(vm)
        with vm.lease("being deleted"):
            self._require(vm, RunState.OFF, "delete", f"Stop it first: sterna vm stop {vm.name}")
            # The record goes first: files without an owner are litter, an owner without files a lie.
            await self._delete_record(vm)
            left = () if keep_disks else await self._delete_files(vm)
            self.launcher.remove_files(vm.record.spec)
        log.info("VM %s was deleted", vm.name)
        if left:
            raise VMFilesLeft(vm=vm.name, leftovers="; ".join(left))

    async def _delete_files(self, vm: VM) -> Sequence[str]:
        """Those that could not be deleted, and why. What a move was to keep is kept."""
        record = vm.record
        left: dict[Volume, str] = {}
        for file in dict.fromkeys((*chain.own_files(record), *record.made, *record.leaving)):
            try:
                await self.kept.clear(vm.id, [file])
            except SternaError as error:
                left[file] = error.message
        if not left:
            await self.kept.forsake(vm.id)
        return tuple(f"{file} ({reason})" for file, reason in left.items())

    async def _delete_record(self, vm: VM) -> None:
        """A VM that came by a move leaves a tombstone: its former owner may still ask for it."""
        if vm.record.owned_epoch:
            await vm.write(
                ownership=replace(vm.record.ownership, state=OwnershipState.RELEASED, peer="")
            )
            vm.remove_run_dir()
        else:
            await vm.delete()
            self.forget(vm)

    # ---- running ---------------------------------------------------------------------------

    def _require(self, vm: VM, state: RunState, action: str, fix: str) -> None:
        if vm.state is not state:
            raise VMWrongState(action=action, vm=vm.name, state=vm.state, fix=fix)

    def require_idle(self, vm: VM) -> None:
        """Raises VMBusy if an operation works on the VM, or is just about to."""
        for operation in self.runner.active(vm.id):
            raise VMBusy(vm=vm.name, doing=f"a {operation.kind}", operation=operation.id)
        with vm.lease("asked"):
            pass

    def require_starts(self) -> None:
        """Raises HostDraining if this host shall start no VM now."""
        if self.is_draining():
            raise HostDraining(host=self.config.name, what="starts no VM")

    async def start(self, ref: str) -> dict[str, Any]:
        """Boot a VM that is off; one with a saved state goes on from there."""
        vm = self.get(ref)
        self._require(vm, RunState.OFF, "start", f"See: sterna vm show {vm.name}")
        self.require_idle(vm)
        self.require_starts()
        with vm.lease("starting"):
            for nic in vm.record.spec.nics:
                self.launcher.switches.require(nic.switch, nic.vlan, nic.trunk)
            if vm.record.saved is not None:
                await saved.go_on(vm, self.launcher, self.kept)
                log.info("VM %s goes on from its saved state", vm.name)
                return view(vm, self.config.name)
            await vm.write(paused=False, **change.from_next_start(vm.record))
            await self.launcher.launch(vm)
            try:
                await vm.resume_as_recorded()
            except BaseException as error:
                await vm.quit()
                if isinstance(error, QEMULost):
                    raise VMStartFailed(
                        vm=vm.name, reason=vm.last_words(), log=vm.paths.log
                    ) from error
                raise
        log.info("VM %s was started", vm.name)
        return view(vm, self.config.name)

    async def pause(self, ref: str) -> dict[str, Any]:
        """Stop the vCPUs; memory and devices stay."""
        vm = self.get(ref)
        self._require(vm, RunState.RUNNING, "pause", f"See: sterna vm show {vm.name}")
        self.require_idle(vm)
        with vm.lease("being paused"):
            await vm.write(paused=True)
            try:
                await vm.qmp.stop()
            except BaseException:
                await vm.write(paused=False)
                raise
            vm.status = "paused"
        return view(vm, self.config.name)

    async def resume(self, ref: str) -> dict[str, Any]:
        """Let the vCPUs run again."""
        vm = self.get(ref)
        self._require(vm, RunState.PAUSED, "resume", f"Start it with: sterna vm start {vm.name}")
        self.require_idle(vm)
        with vm.lease("being resumed"):
            await vm.write(paused=False)
            await vm.qmp.cont()
            vm.status = "running"
        return view(vm, self.config.name)

    def stop(self, ref: str, force: bool, timeout_s: float) -> Operation:
        """Ask the guest to shut down, or with `force` cut its power. An operation."""
        vm = self.get(ref)
        if vm.process is None:
            self._require(vm, RunState.RUNNING, "stop", "It is off already")
        gives_up = force and vm.lacks_memory  # it may wait for memory that never comes
        if not gives_up:
            self.require_idle(vm)

        async def work(job: Job) -> dict[str, Any]:
            if gives_up:
                async with job.step("stop") as step:
                    await vm.quit()
                    step.say(f"{vm.name} was cut off, before all its memory was here")
                return {}
            with vm.lease("being stopped", job.id):
                async with job.step("stop") as step:
                    step.say(await self._stop(vm, force=force, timeout_s=timeout_s))
            return {}

        return self.runner.start("stop", vm=vm.name, vm_id=vm.id, work=work)

    async def _stop(self, vm: VM, *, force: bool, timeout_s: float) -> str:
        if force:
            await vm.quit()
            return f"{vm.name} was cut off"
        if vm.state is not RunState.RUNNING:
            raise VMWrongState(
                action="shut down",
                vm=vm.name,
                state=vm.state,
                fix=f"Resume it first, or cut its power: sterna vm stop --force {vm.name}",
            )
        try:
            async with asyncio.timeout(timeout_s):
                await self._press_power_button(vm)
        except TimeoutError:
            raise VMWrongState(
                action=f"shut down within {timeout_s:g} s",
                vm=vm.name,
                state="still running: its guest did not react to the power button",
                fix=f"Wait longer with --timeout, or cut its power: sterna vm stop --force {vm.name}",
            ) from None
        return f"{vm.name} shut down"

    @staticmethod
    async def _press_power_button(vm: VM) -> None:
        """Until the VM is off: a guest that is still booting does not notice the first time."""
        while not vm.ended.is_set():
            with contextlib.suppress(QEMULost, VMLost):  # it may end in this very moment
                await vm.qmp.system_powerdown()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PRESS_AGAIN_S):
                    await vm.ended.wait()
