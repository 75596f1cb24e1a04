"""The target's end of the data path: what awaits memory and disks here, until the VM is taken.

Promises: `end` removes keys and processes and may be repeated; what it makes lies in the run folder
of the VM and goes with it. Never decides anything about the VM.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import os
import secrets
from collections.abc import Collection, Sequence

from sterna.carrier.control import MEMORY, Event, Role, Start
from sterna.carrier.process import Relay
from sterna.config import Config
from sterna.errors import Failed
from sterna.model.reservation import CarrierReady, Endpoint, Reservation, ReservationStatus
from sterna.model.vm import OwnershipState
from sterna.move import multifd
from sterna.move.carriage import DISKS, IN_KEY, KEY_BYTES, cache_bytes, forget_key, use_key
from sterna.qemu.sockets import listening_ports
from sterna.security import pair
from sterna.vms.machine import VM

log = logging.getLogger(__name__)


class Landing(abc.ABC):
    """`prepare` (QEMU runs), then `export` (if disks come), then `listen`; `end` always."""

    def __init__(
        self, vm: VM, reservation: Reservation, settings: Config, addresses: Sequence[str]
    ) -> None:
        self.addresses = addresses  # of this host, where it shall come, the preferred first
        self.vm = vm
        self.reservation = reservation
        self.settings = settings
        self.failed = asyncio.Event()
        self.failure = ""

    async def start(self) -> None:  # noqa: B027 - not all have anything to start
        """What may begin beside QEMU. Raises CarrierFailed."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What QEMU must switch on for it, beside what every target wants."""
        return frozenset()

    @abc.abstractmethod
    async def prepare(self) -> None:
        """Everything that must be there before QEMU listens."""

    @abc.abstractmethod
    async def export(self) -> None:
        """Start QEMU's server of disks."""

    @abc.abstractmethod
    async def listen(self) -> ReservationStatus:
        """Have QEMU wait for the memory; what the source must know."""

    async def hold(self) -> None:  # noqa: B027 - QEMU holds by itself
        """The VM is about to run here without all its memory: what breaks now is made anew."""

    async def watch(self) -> None:  # noqa: B027 - QEMU's end tells it all
        """Until it is over; sets `failed`, with a reason in `failure`, if that was too early."""

    @abc.abstractmethod
    async def end(self) -> None:
        """Nothing of it is left here. QEMU's server of disks has been stopped, or QEMU has ended."""

    def _status(self, **fields: object) -> ReservationStatus:
        return ReservationStatus(
            operation=self.reservation.operation,
            state=OwnershipState.RESERVED,
            **fields,  # type: ignore[arg-type]
        )


class DirectLanding(Landing):
    """QEMU listens on the network itself."""

    def __init__(
        self,
        vm: VM,
        reservation: Reservation,
        settings: Config,
        addresses: Sequence[str],
        channels: int = 0,
    ) -> None:
        super().__init__(vm, reservation, settings, addresses)
        self._channels = channels
        self._key = secrets.token_hex(KEY_BYTES) if reservation.carrier.encrypted else ""
        self._nbd_port = 0

    @property
    def _credentials(self) -> str:
        return IN_KEY if self._key else ""

    @property
    def capabilities(self) -> frozenset[str]:
        return multifd.capability(self._channels)

    async def prepare(self) -> None:
        await multifd.prepare(self.vm.qmp, self._channels)
        if self._key:
            await use_key(self.vm, IN_KEY, self._key, self.settings.name)

    async def export(self) -> None:
        address, count = self.addresses[0], len(self.reservation.mirrors)
        await self.vm.blocks.nbd_server_start(count, host=address, tls=self._credentials)
        process = self.vm.process
        ports = listening_ports(process.pid) if process is not None else frozenset()
        if len(ports) != 1:
            host = self.settings.name
            raise Failed(detail=f"QEMU on {host} does not listen for the disks of {self.vm.name}")
        self._nbd_port = next(iter(ports))

    async def listen(self) -> ReservationStatus:
        address = self.addresses[0]
        host = f"[{address}]" if ":" in address else address
        await self.vm.qmp.migrate_incoming(f"tcp:{host}:0")
        info = await self.vm.qmp.query_migrate()
        if not info.socket_port:
            name = self.settings.name
            raise Failed(detail=f"QEMU on {name} did not say on which port it listens")
        return self._status(
            address=address,
            port=info.socket_port,
            nbd_port=self._nbd_port,
            carrier=CarrierReady(kind="direct", key=self._key, channels=self._channels),
        )

    async def end(self) -> None:
        if self._key:
            await forget_key(self.vm, IN_KEY)
            self._key = ""


class RelayedLanding(Landing):
    """A relay listens on the network, and QEMU on Unix sockets that the relay connects to."""

    def __init__(
        self, vm: VM, reservation: Reservation, settings: Config, addresses: Sequence[str]
    ) -> None:
        super().__init__(vm, reservation, settings, addresses)
        folder = vm.paths.directory
        self._memory, self._disks = folder / "arriving-memory", folder / "arriving-disks"
        self._relay: Relay | None = None
        self._words = settings.run_dir / f"relay-{vm.id}.log"  # not QEMU's folder,
        # which is made anew meanwhile
        self._pair = pair.make()
        mine = cache_bytes(settings, reservation.spec.memory)
        self._cache = min(mine, reservation.carrier.cache_bytes)
        has_key = reservation.postcopy and reservation.carrier.encrypted
        self._key = secrets.token_hex(KEY_BYTES) if has_key else ""  # QEMU's own, after a break

    async def prepare(self) -> None:
        if self._key:
            await use_key(self.vm, IN_KEY, self._key, self.settings.name)
            await self.vm.qmp.migrate_set_parameters(**{"tls-creds": ""})  # until `hold`

    async def hold(self) -> None:
        if self._key:
            await self.vm.qmp.migrate_set_parameters(**{"tls-creds": IN_KEY})

    async def start(self) -> None:
        start = Start(
            role=Role.TARGET,
            certificate=self._pair.certificate,
            key=self._pair.key,
            peer_certificate=self.reservation.carrier.certificate,
            addresses=tuple(self.addresses),
            services={MEMORY: str(self._memory), DISKS: str(self._disks)},
            cache_bytes=self._cache,
            # In post-copy this host's daemon may end, and the guest needs its pages all the same.
            grace_s=None if self.reservation.postcopy else self.settings.migration.grace,
        )
        self._relay = await Relay.start(start, log=self._words, on_event=self._event)

    async def export(self) -> None:
        await self.vm.blocks.nbd_server_start(len(self.reservation.mirrors), path=str(self._disks))

    async def listen(self) -> ReservationStatus:
        await self.vm.qmp.migrate_incoming(f"unix:{self._memory}")
        if self._relay is None:
            raise AssertionError("prepare comes first")
        there = tuple(Endpoint(address=one.address, port=one.port) for one in self._relay.endpoints)
        ready = CarrierReady(
            kind="compression",
            key=self._key,
            certificate=self._pair.certificate,
            endpoints=there,
            cache_bytes=self._cache,
        )
        return self._status(address=self.addresses[0], carrier=ready)

    def _event(self, event: Event) -> None:
        log.info("link of %s: %s", self.vm.name, event.text)

    async def watch(self) -> None:
        relay = self._relay
        if relay is None:
            return
        await relay.ended.wait()
        if self._relay is None:  # by `end`
            return
        words = relay.failure or "its source has closed the link"
        self.failure = f"the relay of {self.settings.name} has ended: {words}"
        self.failed.set()

    async def end(self) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            await relay.stop()
        if self._key:
            await forget_key(self.vm, IN_KEY)
            self._key = ""
        self._words.unlink(missing_ok=True)


def remove_words(settings: Config) -> None:
    """What relays of a former life of this daemon have said; they ended with it."""
    for words in settings.run_dir.glob("relay-*.log"):
        words.unlink(missing_ok=True)


def landing(
    vm: VM,
    reservation: Reservation,
    settings: Config,
    known: Collection[str],
    addresses: Sequence[str],
) -> Landing:
    """For the carrier that the source has chosen. `known`: migration capabilities of QEMU here.

    `addresses`: where moves may arrive; of those the source has its choice. Raises Failed.
    """
    wished = reservation.carrier.addresses
    addresses = [one for one in wished if one in addresses] if wished else addresses
    if not addresses:
        name, source = settings.name, reservation.source
        words = f"{name} receives no move at an address that {source} may use"
        raise Failed(detail=f"{words}; check the migration networks of both")
    if reservation.carrier.kind == "compression":
        return RelayedLanding(vm, reservation, settings, addresses)
    offer = 0 if reservation.postcopy else reservation.carrier.channels
    limit, cpus = settings.migration.channels, os.cpu_count() or 1
    channels = multifd.accepted(offer, limit, known, cpus=cpus)
    return DirectLanding(vm, reservation, settings, addresses, channels)
