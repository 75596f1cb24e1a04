"""Where an arriving VM will lie: what this host must have for it, what is made, its QEMU that waits.

Promises: whatever is made is named in the record's `made` before it exists, and `clear` removes it;
a file that was here before is never touched. Knows nothing of who owns the VM.
"""

from __future__ import annotations

import base64
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from sterna.errors import (
    EncryptionRequired,
    Failed,
    ImageFailed,
    NoRoom,
    QMPError,
    SternaError,
    VMBusy,
    VMDamaged,
    VMExists,
    VMNotOwned,
    VMWrongState,
    VolumeExists,
)
from sterna.host.parts import Parts
from sterna.model.disk import Volume, node_name
from sterna.model.host import HostFacts
from sterna.model.reservation import Reservation, ReservationStatus
from sterna.model.travel import GROWTH
from sterna.model.vm import VMRecord
from sterna.move import capabilities, protocol
from sterna.move.arriving import other_base, owner
from sterna.move.landing import Landing, landing
from sterna.move.memory import UNLIMITED
from sterna.qemu import image
from sterna.tasks import together
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.service import VMs

log = logging.getLogger(__name__)


class Berth:
    """The places of this host for VMs that arrive. `promised`: what has been admitted already."""

    def __init__(
        self, vms: VMs, parts: Parts, promised: Callable[[], Iterable[Reservation]] = tuple
    ) -> None:
        self._vms = vms
        self._parts = parts
        self._promised = promised

    @property
    def host(self) -> str:
        return self._vms.config.name

    # ---- what must be there ------------------------------------------------------------------

    def problems(self, reservation: Reservation, facts: HostFacts) -> Iterator[SternaError]:
        """All that stands in the way of this VM now. Looks at shares, so not for the event loop."""
        for look in (
            self._name,
            self._memory,
            self._acceleration,
            self._encryption,
            self._switches,
            self._pools,
            self._files,
            self._room,
            self._tpm,
        ):
            try:
                look(reservation, facts)
            except SternaError as error:
                yield error

    def _name(self, reservation: Reservation, _facts: HostFacts) -> None:
        """The VM, its name or a newer life of it must not be here."""
        spec = reservation.spec
        for item in self._vms.damaged:
            if item.key == spec.id:  # it may be this host's, or name files that are
                raise VMDamaged(vm=spec.name, host=self.host, path=item.path, reason=item.reason)
        known = self._vms.by_id(spec.id)
        if known is not None and (known.doing or known.process is not None):
            raise VMBusy(
                vm=spec.name,
                doing=known.doing or f"its last QEMU on {self.host} is about to end",
                operation=known.operation or reservation.operation,
            )
        if known is not None and known.is_here:
            raise VMExists(vm=f"{spec.name} ({spec.id})", host=self.host)
        if known is not None and not protocol.admits(
            protocol.standing(known.record), reservation.epoch
        ):
            raise VMNotOwned(
                vm=spec.name,
                host=reservation.source,
                reason=f"{self.host} has owned it since, in epoch {known.record.owned_epoch}",
                fix="This is an old copy; look where the VM is before you delete it",
            )
        if self._vms.find(spec.name) is not None:
            raise VMExists(vm=spec.name, host=self.host)

    def _memory(self, reservation: Reservation, facts: HostFacts) -> None:
        """Facts may have changed since the source looked."""
        spec = reservation.spec
        if reservation.live and spec.memory > facts.memory_free:
            raise VMWrongState(
                action="receive",
                vm=spec.name,
                state=f"larger than the memory that {self.host} has to give",
                fix="Stop or move another VM first",
            )

    def _tpm(self, reservation: Reservation, _facts: HostFacts) -> None:
        """Its TPM can be had here, and nobody else's word is taken for that."""
        if reservation.spec.tpm:
            self._vms.launcher.tpms.require(self.record(reservation))

    def _acceleration(self, reservation: Reservation, facts: HostFacts) -> None:
        if reservation.accel and reservation.accel != facts.qemu.accel:
            raise VMWrongState(
                action="receive",
                vm=reservation.spec.name,
                state=f"running under {reservation.accel}; {self.host} offers {facts.qemu.accel}",
                fix="Stop it and move it off",
            )

    def _encryption(self, reservation: Reservation, _facts: HostFacts) -> None:
        carrier, wanted = reservation.carrier, self._vms.settings().encryption
        may_be_qemus = carrier.kind == "direct" or reservation.postcopy  # its connection
        is_plain = may_be_qemus and not carrier.encrypted
        if reservation.live and wanted == "required" and is_plain:
            raise EncryptionRequired(
                source=reservation.source, vm=reservation.spec.name, host=self.host
            )

    def _switches(self, reservation: Reservation, _facts: HostFacts) -> None:
        for nic in reservation.spec.nics:
            self._vms.launcher.switches.require(nic.switch, nic.vlan, nic.trunk)

    def _pools(self, reservation: Reservation, _facts: HostFacts) -> None:
        for disk in reservation.spec.disks:
            self._vms.launcher.pools.require(disk.pool)
        for medium in chain.media(reservation.spec):
            self._vms.launcher.pools.require(medium.pool)

    def _files(self, reservation: Reservation, _facts: HostFacts) -> None:
        """Nothing that is here is ever written over."""
        pools = self._vms.launcher.pools
        for volume in self._wanted(reservation):
            path = pools.volume_path(volume.pool, volume.volume)
            if path.exists():
                raise VolumeExists(path=path, pool=volume.pool, volume=volume.volume)
        self.require_unclaimed(reservation)
        for file in reservation.files:
            place = file.place
            path = pools.volume_path(place.pool, place.volume)
            if file.is_base and path.exists() and path.stat().st_size != file.size:
                raise other_base(reservation.spec, place, self.host)

    def require_unclaimed(self, reservation: Reservation) -> None:
        """No other VM has or is about to make a file of that name. Does not look at the disk."""
        claimed = {
            volume
            for vm in self._vms.all()
            if vm.id != reservation.spec.id and vm.is_here
            for volume in (*chain.own_files(vm.record), *vm.record.made)
        }
        media = set(chain.media(reservation.spec))
        for vm in self._vms.all():
            for volume in media.intersection(chain.own_files(vm.record) if vm.is_here else ()):
                raise other_base(reservation.spec, volume, self.host)
        for volume in self._wanted(reservation):
            if volume in claimed:
                path = self._vms.launcher.pools.volume_path(volume.pool, volume.volume)
                raise VolumeExists(path=path, pool=volume.pool, volume=volume.volume)

    def _room(self, reservation: Reservation, facts: HostFacts) -> None:
        """Beside what is on its way already: a full pool stops the guests that run there."""
        free = Counter({item.pool.name: item.free for item in facts.pools})
        for other in self._promised():
            free.subtract(self._lacking(other))
        for pool, needed in self._lacking(reservation).items():
            if needed > max(0, free[pool]):
                raise NoRoom(
                    vm=reservation.spec.name,
                    pool=pool,
                    host=self.host,
                    needed=needed,
                    free=max(0, free[pool]),
                )

    def _lacking(self, reservation: Reservation) -> dict[str, int]:
        """Bytes of each pool that the VM will take, beyond what it takes now."""
        room: Counter[str] = Counter()
        mine = owner(reservation.spec.id, is_lasting=reservation.is_resumable)
        for file in reservation.files:
            held = self._parts.held(mine, file.place)
            if self._blocks(file.place) is None:
                room[file.place.pool] += max(0, file.allocated - held)
        tops = self._tops(reservation)
        for mirror in reservation.mirrors:
            held = self._blocks(tops[mirror.disk]) or 0
            room[tops[mirror.disk].pool] += max(0, int(mirror.allocated * GROWTH) - held)
        return room

    def _blocks(self, place: Volume) -> int | None:
        """Bytes that a file takes here; None: it is not here."""
        try:
            found = self._vms.launcher.pools.volume_path(place.pool, place.volume).stat()
        except OSError:
            return None
        return found.st_blocks * 512

    # ---- what is made ------------------------------------------------------------------------

    @staticmethod
    def _tops(reservation: Reservation) -> dict[str, Volume]:
        return {
            disk.name: Volume(pool=disk.pool, volume=disk.volume) for disk in reservation.spec.disks
        }

    @classmethod
    def _wanted(cls, reservation: Reservation) -> list[Volume]:
        """The files that must not be here yet."""
        tops = cls._tops(reservation)
        return [
            *(file.place for file in reservation.files if not file.is_base),
            *(tops[mirror.disk] for mirror in reservation.mirrors),
        ]

    def record(self, reservation: Reservation) -> VMRecord:
        """The record to begin with."""
        known = self._vms.by_id(reservation.spec.id)
        reserved = protocol.on_reserve(
            protocol.standing(known.record) if known else None,
            reservation.operation,
            reservation.epoch,
            reservation.source,
        )
        return VMRecord(
            spec=reservation.spec,
            ownership=reserved.ownership,
            paused=reservation.paused,
            created=reservation.created,
            cpu_next=reservation.cpu_next,
            notes=reservation.notes,
            protector=reservation.protector,
            owned_epoch=reserved.owned_epoch,
            fenced=reserved.fenced,
            checkpoints=reservation.checkpoints,
            at=reservation.at,
            saved=reservation.saved,
            made=tuple(self._wanted(reservation)),
        )

    def write_nvram(self, reservation: Reservation) -> None:
        """The UEFI variables, and the state of a TPM that is off, as the source has them now."""
        if reservation.spec.tpm:
            state = base64.b64decode(reservation.tpm)
            self._vms.launcher.tpms.remove(reservation.spec.id)  # of an earlier stay
            if state:
                self._vms.launcher.tpms.put(reservation.spec.id, state)
        if reservation.nvram:
            path = self._vms.launcher.nvram(reservation.spec.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(reservation.nvram))

    async def make_tops(self, vm: VM, reservation: Reservation) -> None:
        """Empty images for the disks that will be mirrored; what they rest on is here already."""
        disks = {disk.name: disk for disk in vm.record.spec.disks}
        for mirror in reservation.mirrors:
            disk = disks[mirror.disk]
            below = chain.images(vm.record, disk)[1:]
            path = self._vms.launcher.pools.volume_path(disk.pool, disk.volume)
            try:
                await image.create(path, disk.format, mirror.size, below[0] if below else None)
            except ImageFailed as error:
                if isinstance(error.__cause__, FileExistsError):  # since we looked: somebody else's
                    place = Volume(pool=disk.pool, volume=disk.volume)
                    await vm.write(made=tuple(one for one in vm.record.made if one != place))
                raise

    async def listen(self, vm: VM, reservation: Reservation) -> tuple[ReservationStatus, Landing]:
        """Start QEMU; it waits for the memory, and for the disks, where the answer says."""
        launcher = self._vms.launcher
        known = launcher.capabilities.migration_capabilities
        ground = landing(vm, reservation, self._vms.config, known, self._vms.migration_addresses)
        try:
            await together(launcher.launch(vm, incoming=True), ground.start())
            wanted = capabilities.TARGET | ground.capabilities
            mapping = self._bitmaps(reservation)
            if mapping:
                wanted |= {capabilities.BITMAPS}
            if reservation.postcopy:
                wanted |= {capabilities.POSTCOPY}
            await vm.qmp.migrate_set_capabilities(
                dict(capabilities.settings(wanted, known, self.host))
            )
            limits: dict[str, object] = {"max-bandwidth": UNLIMITED}
            await vm.qmp.migrate_set_parameters(
                **limits, **({"block-bitmap-mapping": mapping} if mapping else {})
            )
            await ground.prepare()
            if reservation.mirrors:
                await self._export(vm, reservation, ground)
            return await ground.listen(), ground
        except BaseException:
            await ground.end()
            raise

    @staticmethod
    def _bitmaps(reservation: Reservation) -> list[dict[str, object]]:
        nodes = {disk.name: node_name(disk.pool, disk.volume) for disk in reservation.spec.disks}
        return [
            capabilities.bitmap_mapping(nodes[mirror.disk], mirror.disk, mirror.bitmaps)
            for mirror in reservation.mirrors
            if mirror.bitmaps
        ]

    async def _export(self, vm: VM, reservation: Reservation, ground: Landing) -> None:
        """Offer the disks to one connection each."""
        if vm.process is None:
            raise Failed(
                detail=f"the QEMU of {vm.name} on {self.host} has ended: {vm.last_words()}"
            )
        await ground.export()
        nodes = {disk.name: node_name(disk.pool, disk.volume) for disk in vm.record.spec.disks}
        for mirror in reservation.mirrors:
            await vm.blocks.export(
                f"export-{mirror.disk}", nodes[mirror.disk], mirror.disk, writable=True
            )

    async def unexport(self, vm: VM, reservation: Reservation) -> None:
        """Before the VM runs here: nobody else may write its disks any more."""
        if not reservation.mirrors:
            return
        with contextlib.suppress(QMPError):  # asked a second time it has stopped already
            await vm.blocks.nbd_server_stop()
        if left := await vm.blocks.exports():
            raise Failed(detail=f"QEMU on {self.host} still offers {', '.join(left)}")

    async def clear(self, vm: VM) -> None:
        """Remove what was made for a VM that will not lie here: QEMU, files. May be repeated."""
        await vm.quit()
        used = self._vms.kept.used_but_by(vm.id)
        for file in vm.record.made:
            if file in used:  # such as a template that came with this VM
                continue
            await self._vms.launcher.pools.delete_volume(file.pool, file.volume)
        await self._remove_parts(vm)
        self._vms.launcher.remove_files(vm.record.spec)
        if vm.record.made:
            await vm.write(made=())

    async def _remove_parts(self, vm: VM) -> None:
        """What a daemon that died left of a live move; of a VM that is off they are of use still."""
        mine = owner(vm.id, is_lasting=False)
        pools = chain.pools(vm.record)
        try:
            await self._parts.run(lambda: self._parts.remove(mine, set(pools)))
        except SternaError as error:
            log.warning("parts of %s stay for a day: %s", vm.name, error)
