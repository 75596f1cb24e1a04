"""A move through relays, as its source sees it: QEMU talks to a relay beside it, and never to a network.

The relay is a process of its own (`sterna.carrier`). It begins when the target is asked, is connected
when the target is open, and ends with the move, whatever becomes of that. Its certificate is made for
this move and is known to the target by the authenticated API.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from sterna import clock
from sterna.carrier.control import MEMORY, Event, Level, Role, Start, Stats
from sterna.carrier.facts import ChannelState, Endpoint, Route
from sterna.carrier.process import Relay
from sterna.config import Config
from sterna.errors import CarrierFailed, Failed, SternaError
from sterna.model.move import ChannelProgress
from sterna.model.reservation import CarrierKind, CarrierOffer, ReservationStatus
from sterna.model.vm import OwnershipState
from sterna.move.carriage import DISKS, OUT_KEY, Carriage, Direct, cache_bytes, forget_key, use_key
from sterna.qemu.blocks import nbd_node
from sterna.qemu.nodes import Options
from sterna.qemu.sockets import cut_path
from sterna.security import pair
from sterna.vms.machine import VM
from sterna.vms.service import VMs

LAST_WORDS_S = 0.3  # between a connection of QEMU that breaks and what the relay says of it
SAME_NETWORK_BITS = {4: 16, 6: 48}  # addresses that share fewer are not of one network


def routes(ours: Sequence[str], theirs: Sequence[Endpoint]) -> tuple[Route, ...]:
    """A channel to each endpoint, from our address on its network; elsewhere the kernel chooses."""
    return tuple(Route(_nearest(ours, one.address), one) for one in theirs)


def _nearest(ours: Sequence[str], address: str) -> str:
    there = ip_address(address)

    def shared(one: str) -> int:
        here = ip_address(one)
        if here.version != there.version:
            return -1
        return here.max_prefixlen - (int(here) ^ int(there)).bit_length()

    best = max(ours, key=shared, default="")
    return best if best and shared(best) >= SAME_NETWORK_BITS[there.version] else ""


class Relayed(Carriage):
    """The carrier `compression`."""

    kind: CarrierKind = "compression"

    def __init__(
        self,
        vm: VM,
        settings: Config,
        say: Callable[[str, str], None],
        ours: Sequence[str],
        *,
        is_encrypted: bool,
    ) -> None:
        self._ours = ours  # addresses that it may use
        self._is_encrypted = is_encrypted  # QEMU's own connection, if a post-copy breaks
        self._has_key = False
        self._vm = vm
        self._settings = settings
        self._say = say
        self._relay: Relay | None = None
        self._cache = cache_bytes(settings, vm.record.spec.memory)
        self._pair = pair.make()
        self._limit: int | None = None
        self._last: Stats | None = None  # of a relay that has ended
        folder = vm.paths.directory
        self._services = {MEMORY: folder / "relay-memory", DISKS: folder / "relay-disks"}

    @property
    def offer(self) -> CarrierOffer:
        return CarrierOffer(
            kind=self.kind,
            certificate=self._pair.certificate,
            cache_bytes=self._cache,
            encrypted=self._is_encrypted,
        )

    async def start(self) -> None:
        migration = self._settings.migration
        start = Start(
            role=Role.SOURCE,
            certificate=self._pair.certificate,
            key=self._pair.key,
            services={name: str(path) for name, path in self._services.items()},
            cache_bytes=self._cache,
            limit=self._limit,
            grace_s=migration.grace,
        )
        log = self._vm.paths.directory / "relay.log"
        self._relay = await Relay.start(start, log=log, on_event=self._event)

    async def begin(self, opened: ReservationStatus) -> None:
        ready = opened.carrier
        if ready is None or ready.kind != self.kind or not ready.endpoints:
            raise Failed(detail="the target did not open its end of the link")
        there = [Endpoint(one.address, one.port) for one in ready.endpoints]
        ways = routes(self._ours, there)
        await self._there().connect(ways, ready.certificate, ready.cache_bytes)
        await self._wait_up()
        if ready.key:
            self._has_key = True
            await use_key(self._vm, OUT_KEY, ready.key, self._settings.name)
        await self._vm.qmp.migrate_set_parameters(**{"tls-creds": ""})  # until `hold`

    async def _wait_up(self) -> None:
        """QEMU must not be sent to a link that is not there: it waits, and its guest with it."""
        relay = self._there()
        waits = {asyncio.ensure_future(one.wait()) for one in (relay.up, relay.ended)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        if not relay.up.is_set():
            raise relay.loss()

    def _event(self, event: Event) -> None:
        """Channels that come and go: for the log of the operation, until the VM is given away."""
        if self._vm.record.ownership.state is OwnershipState.OWNED and self._relay is not None:
            level = "warning" if event.level is Level.WARNING else "info"
            self._say(f"link: {event.text}", level)

    def _there(self) -> Relay:
        if self._relay is None:
            raise CarrierFailed(reason="its relay has ended")
        return self._relay

    @property
    def uri(self) -> str:
        return f"unix:{self._services[MEMORY]}"

    def disk(self, node: str, export: str) -> Options:
        server = {"type": "unix", "path": str(self._services[DISKS])}
        return nbd_node(node, server=server, export=export)

    async def sever(self) -> None:
        await self.end()

    def cut_disks(self) -> None:
        if self._vm.process is not None:
            cut_path(self._vm.process.pid, str(self._services[DISKS]))

    # ---- figures ---------------------------------------------------------------------------

    @property
    def _stats(self) -> Stats | None:
        return self._relay.stats if self._relay is not None else self._last

    def disk_bytes(self) -> int:
        stats = self._stats
        disks = stats.services.get(DISKS) if stats is not None else None
        return disks.wire_out if disks is not None else 0

    def wire_bytes(self) -> int | None:
        stats = self._stats
        return stats.link.wire_out if stats is not None and stats.link is not None else None

    @property
    def is_link_down(self) -> bool:
        stats = self._stats
        link = stats.link if stats is not None else None
        return link is not None and link.down_since is not None and link.closed is None

    @property
    def final_rate(self) -> float | None:
        memory = self._stats.memory if self._stats is not None else None
        return float(memory.rate) or None if memory is not None else None

    @property
    def in_flight(self) -> int:
        memory = self._stats.memory if self._stats is not None else None
        return memory.in_flight if memory is not None else 0

    def view(self) -> dict[str, Any]:
        stats = self._stats
        link = stats.link if stats is not None else None
        if stats is None or link is None:
            return {}
        seen: dict[str, Any] = {
            "bytes_wire": link.wire_out,
            "wire_rate": float(sum(channel.rate for channel in link.channels)),
            "is_limited": link.limited,
            "link": "up" if link.down_since is None else "down",
            "down_s": 0.0 if link.down_since is None else _since(link.down_since),
            "channels": tuple(
                ChannelProgress(
                    local=channel.local,
                    remote=channel.remote,
                    state=str(channel.state),
                    rate=float(channel.rate) if channel.state is ChannelState.UP else 0.0,
                    rtt_ms=round(channel.rtt_ms, 2),
                    reason=channel.reason,
                )
                for channel in link.channels
            ),
        }
        carried = sum(service.bytes_in for service in stats.services.values())
        if stats.memory is not None:
            seen["pages"] = dict(stats.memory.pages)
            carried += max(0, stats.memory.guest_bytes - stats.memory.stream_bytes)
        if carried:
            seen["ratio"] = round(link.wire_out / carried, 4)
        return seen

    # ---- post-copy, limits, failures, the end -----------------------------------------------------------

    async def hold(self) -> None:
        if self._has_key:
            await self._vm.qmp.migrate_set_parameters(**{"tls-creds": OUT_KEY})
        await self._there().set_grace(None)

    @property
    def limits_itself(self) -> bool:
        return True

    async def limit(self, bytes_s: int | None) -> None:
        self._limit = bytes_s
        if self._relay is not None and not self._relay.ended.is_set():
            await self._relay.set_limit(bytes_s)

    async def run(self) -> None:
        relay = self._there()
        await relay.ended.wait()
        self.failure = f"the relay of {self._settings.name} failed: {relay.failure}"
        raise CarrierFailed(reason=self.failure)

    async def end(self, *, is_undone: bool = True) -> None:
        if self._has_key:
            self._has_key = False
            with contextlib.suppress(SternaError):
                await forget_key(self._vm, OUT_KEY)
        relay = self._relay
        if relay is None:
            return
        if is_undone:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await relay.ended.wait()
        if relay.ended.is_set() and relay.failure and not self.failure:
            self.failure = f"the relay of {self._settings.name} failed: {relay.failure}"
        self._last, self._relay = relay.stats, None
        await relay.stop()
        for path in self._services.values():
            path.unlink(missing_ok=True)


def _since(moment: float) -> float:
    return round(max(0.0, clock.monotonic() - moment), 1)


def carriage(
    kind: CarrierKind,
    vm: VM,
    vms: VMs,
    say: Callable[[str, str], None],
    channels: int = 0,
) -> Carriage:
    """The path of a move by that carrier; `say` writes to the operation's log. `channels`: that QEMU
    would like if it sends by itself.
    """
    is_encrypted = vms.settings().encryption == "required"
    if kind == "compression":
        return Relayed(vm, vms.config, say, vms.migration_addresses, is_encrypted=is_encrypted)
    return Direct(vm, vms.config.name, is_encrypted=is_encrypted, channels=channels)
