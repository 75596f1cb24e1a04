"""Before a move: facts of both hosts gathered once, all checks, and the plan that comes of them.

Changes nothing anywhere. `sterna check` and every move do the same here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sterna import clock
from sterna.checks import plan as approval
from sterna.checks import registry
from sterna.checks.facts import GuestFacts, LinkFacts, Question
from sterna.checks.storage import boot_files
from sterna.errors import PlanOutdated, SternaError
from sterna.model.check import CarrierForecast, Check, MoveReport, Place, Severity, outcome
from sterna.model.disk import Volume
from sterna.model.host import HostFacts
from sterna.model.move import MoveWishes
from sterna.model.settings import HostSettings
from sterna.model.travel import Travel
from sterna.model.vm import Disk, VMSpec
from sterna.move import carriers, gather, offer, probe, sample
from sterna.move.carriers import Choice
from sterna.move.paces import Paces
from sterna.move.peer import Peer, Peers
from sterna.move.storage.facts import users
from sterna.move.travel import measure, plan, shared_pools
from sterna.units import GIB
from sterna.vms import chain
from sterna.vms.inspection import Inspections
from sterna.vms.machine import VM
from sterna.vms.service import VMs

T = TypeVar("T")
AT_ONCE = 16  # targets that are asked at a time
TCG_SYNC_S_PER_GIB = 0.5
TABLES_S = 0.7  # for tables of images: those of large ones are for `sterna disk check`

# What the target calls what a check of ours has found as well.
SAME = {
    "host.draining": "host.draining",
    "move.encryption-required": "host.encryption",
    "move.inbound-disabled": "host.inbound",
    "pool.no-room": "storage.no-room",
    "pool.not-found": "storage.pool-missing",
    "pool.unusable": "storage.pool-broken",
    "switch.not-found": "network.switch-missing",
    "switch.unusable": "network.switch-broken",
    "switch.vlan-unsupported": "network.vlan",
}
# What follows from another finding, and is not said beside it.
FOLLOWS = {
    "storage.no-room": {"storage.pool-missing", "storage.pool-broken"},
    "vm.wrong-state": {"host.memory", "qemu.accel"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What is known of this side, whatever the target."""

    source: HostFacts
    guest: GuestFacts
    damage: list[Check]  # what a glance shows of its images
    memory: sample.Memory | None  # of a VM that runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was found, and what a move that begins now would do."""

    question: Question
    found: tuple[Check, ...]
    choice: Choice | None  # of a VM that runs

    @property
    def travel(self) -> Travel:
        """What goes, where to."""
        return self.question.travel

    @property
    def wishes(self) -> MoveWishes:
        """With what the settings say where the user has named nothing."""
        return self.question.wishes

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the target, where to arrive, the preferred first."""
        return self.question.link.addresses


class Preflight:
    """Looks at VMs of this host and at the hosts where they want to go."""

    def __init__(
        self,
        vms: VMs,
        peers: Peers,
        own_facts: Callable[[], Awaitable[HostFacts]],
        inspections: Inspections,
        paces: Paces,
    ) -> None:
        self._vms = vms
        self._peers = peers
        self._own_facts = own_facts
        self._inspections = inspections
        self._paces = paces

    async def reports(self, vm: VM, wishes: MoveWishes, targets: Sequence[str]) -> list[MoveReport]:
        """The same for many targets, a few at a time. No link is measured: they would share it."""
        here = await self._here(vm, (vm.doing, vm.operation))
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(target: str) -> MoveReport:
            async with turn:
                return await self.report(vm, replace(wishes, target=target), here)

        return list(await asyncio.gather(*(one(target) for target in targets or self._peers.names)))

    async def report(self, vm: VM, wishes: MoveWishes, here: Here | None = None) -> MoveReport:
        """What would become of that move. An error that ends the look is a blocker in it."""
        try:
            prepared = await self.look(vm, wishes, (vm.doing, vm.operation), here)
        except SternaError as error:
            return self._report(vm, wishes, (registry.told(error),))
        travel, choice = prepared.travel, prepared.choice
        return replace(
            self._report(vm, approval.settled(prepared.question), prepared.found),
            facts=approval.facts(prepared.question),
            places=_places(vm, travel),
            carrier=choice.kind if choice else "",
            carrier_reason=choice.reason if choice else "",
            forecasts=tuple(_forecast(one) for one in choice.forecasts) if choice else (),
            rate=prepared.question.link.rate,
            ways=prepared.question.link.ways,
        )

    def _report(self, vm: VM, wishes: MoveWishes, found: tuple[Check, ...]) -> MoveReport:
        return MoveReport(
            vm=vm.name,
            vm_id=vm.id,
            source=self._vms.config.name,
            target=wishes.target,
            made=clock.now(),
            outcome=outcome(found),
            wishes=wishes,
            findings=found,
        )

    async def require(self, vm: VM, wishes: MoveWishes) -> tuple[Peer, Prepared]:
        """The same for a move that shall begin.

        Raises PlanOutdated, MoveRefused, HostUnknown, HostUnreachable.
        """
        prepared = await self.look(vm, wishes)
        if wishes.approved is not None:
            now = approval.facts(prepared.question)
            changes = list(approval.changes(wishes.approved, now, prepared.found))
            if changes:
                summary = "; ".join(changes)
                raise PlanOutdated(
                    vm=vm.name, target=wishes.target, summary=summary, changes=changes
                )
        registry.refuse_blockers(vm.name, wishes.target, prepared.found)
        return self._peers.get(wishes.target), prepared

    async def _here(self, vm: VM, doing: tuple[str, str]) -> Here:
        asking = asyncio.gather(self._own_facts(), gather.guest(vm, doing), self._damage(vm, doing))
        if vm.process is None:
            (source, guest, damage), memory = await asking, None
        else:
            (source, guest, damage), memory = await sample.during(vm.process.pid, asking)
        return Here(source=source, guest=guest, damage=damage, memory=memory)

    async def look(
        self,
        vm: VM,
        wishes: MoveWishes,
        doing: tuple[str, str] = ("", ""),
        known: Here | None = None,
    ) -> Prepared:
        """Gather all facts and ask all checks. `doing`: who else holds the VM, and its operation.

        What is `known` of this side is not gathered again, and the link is not measured then.

        Raises HostUnknown, HostUnreachable, VolumeMissing, and MoveRefused for wishes that
        contradict themselves.
        """
        config, pools = self._vms.config, self._vms.launcher.pools
        wishes = _filled(wishes, self._vms.settings())
        peer = None if wishes.target == config.name else self._peers.get(wishes.target)
        here, there, link = await asyncio.gather(  # each takes a moment
            self._here(vm, doing) if known is None else _given(known),
            _facts(peer),
            self._link(vm, peer) if known is None else _given(LinkFacts()),
        )
        source = here.source
        target, ahead = there or (source, 0.0)
        shared = shared_pools(source, target)
        seen = await self._seen(vm, peer, shared, (source, target), wishes)
        apart = {pool for pool, proof in seen.proofs.items() if proof.is_same is False}
        is_live = vm.record.process is not None
        travel = plan(
            vm.record,
            wishes,
            shared=shared - apart,
            is_live=is_live,
            known={facts.pool.name for facts in target.pools},
        )
        question = Question(
            spec=vm.record.spec,
            guest=here.guest,
            travel=await measure(travel, vm.record, pools, source.name),
            source=source,
            target=target,
            wishes=wishes,
            link=replace(link, clock_ahead_s=ahead, addresses=_usable(link, source, target)),
            proofs=seen.proofs,
            files=seen.files,
            joinable=seen.joinable,
            certificates=self._peers.trust.certificates(config.name, wishes.target),
            users=users(vm, self._vms, travel.leaving),
        )
        found = [*here.damage, *registry.run(question)]
        if peer is not None and not doing[0]:
            found += await self._told(vm, peer, question.travel, {one.id for one in found})
        return Prepared(
            question=question,
            found=tuple(registry.in_order(found)),
            choice=_choice(vm, question, here.memory, self._paces.of(wishes.target)),
        )

    async def _seen(
        self,
        vm: VM,
        peer: Peer | None,
        shared: frozenset[str],
        hosts: tuple[HostFacts, HostFacts],
        wishes: MoveWishes,
    ) -> gather.Seen:
        """What the target sees of the VM's shared pools, of the files that it boots and its CDs."""
        source, target = hosts
        files = (*boot_files(vm.record.spec), *_media(vm.record.spec, target, wishes.pool))
        used = chain.pools(vm.record)
        known = {facts.pool.name for facts in target.pools}
        mine = (facts.pool for facts in source.pools if facts.pool.name in used - known)
        lacking = [pool for pool in mine if pool.shared]
        if peer is None or not (shared & used or files or lacking):
            return gather.Seen(files=frozenset(files))
        pools = self._vms.launcher.pools
        return await gather.seen(pools, peer, sorted(shared & used), files, lacking)

    async def _link(self, vm: VM, peer: Peer | None) -> LinkFacts:
        if peer is None:
            return LinkFacts()
        networks = self._vms.settings().migration_networks
        return await probe.look(peer, is_live=vm.process is not None, networks=networks)

    async def _damage(self, vm: VM, doing: tuple[str, str]) -> list[Check]:
        """What is wrong with the VM's images and its saved memory, as far as a glance shows."""
        if doing[0]:  # they change under our eyes
            return []
        return [
            Check(id=one.id, severity=one.severity, finding=one.finding, fix=one.fix)
            for one in await self._inspections.glance(vm, TABLES_S)
            if one.severity is not Severity.INFO
        ]

    async def _told(self, vm: VM, peer: Peer, travel: Travel, known: set[str]) -> list[Check]:
        """What only the target can see: names and files that are there, the state of its VMs."""
        told = await peer.check(offer.reservation(vm, self._vms, travel))
        # Another host may say what is wrong there; what `--fix` runs here is for us to say.
        named = [
            replace(one, id=SAME.get(one.id, one.id), command="", is_safe=False) for one in told
        ]
        return [one for one in named if known.isdisjoint({one.id, *FOLLOWS.get(one.id, ())})]


def _media(spec: VMSpec, target: HostFacts, wished: str) -> Iterator[str]:
    """Where the target may have the CDs of a VM."""
    for facts in target.pools:
        for medium in chain.media(spec):
            if facts.pool.name in (medium.pool, wished):
                yield str(Path(facts.pool.path) / medium.volume)


async def _given(known: T) -> T:
    return known


async def _facts(peer: Peer | None) -> tuple[HostFacts, float] | None:
    return None if peer is None else await gather.facts_of(peer)


def _filled(wishes: MoveWishes, settings: HostSettings) -> MoveWishes:
    """What the user has not named, as this host's settings say."""
    carrier, pause_ms = wishes.carrier, wishes.max_downtime_ms
    if carrier is None:  # a broken post-copy is mended from QEMU to QEMU
        carrier = "direct" if wishes.on_stall == "postcopy" else settings.carrier
    if pause_ms is None:
        pause_ms = settings.max_downtime_ms
    return replace(wishes, carrier=carrier, max_downtime_ms=pause_ms)


def _usable(link: LinkFacts, source: HostFacts, target: HostFacts) -> tuple[str, ...]:
    if link.ways:
        return link.addresses
    return probe.usable((), target.migration_addresses, source.settings.migration_networks)


def _choice(
    vm: VM, q: Question, memory: sample.Memory | None, pace: carriers.Pace
) -> Choice | None:
    if vm.process is None:
        return None
    measured = carriers.Measured(
        link=q.link.rate,
        memory=memory or sample.Memory(used=vm.record.spec.memory),
        disks=sum(mirror.offer.allocated for mirror in q.travel.mirrors),
        idle_here=q.source.cpus_idle,
        idle_there=q.target.cpus_idle,
        limit=q.wishes.bandwidth,
        max_pause_s=q.wishes.pause_ms / 1000,
        sync_s=_sync_s(vm),
        pace=pace,
    )
    return carriers.choose(q.wishes.carrier or "auto", measured)


def _forecast(one: carriers.Forecast) -> CarrierForecast:
    ends = one.total_s < carriers.NEVER_S
    return CarrierForecast(
        kind=one.kind,
        total_s=round(one.total_s, 2) if ends else None,
        pause_ms=round(one.pause_ms, 1) if ends else None,
        bytes_wire=one.wire if ends else None,
        needs_pause_ms=round(one.needs.pause_ms, 1) if one.needs else None,
        needs_rate=round(one.needs.link) if one.needs and one.needs.link else None,
    )


def _sync_s(vm: VM) -> float:
    """Under emulation the guest stands still while QEMU looks what it has changed (ADR 8)."""
    process = vm.record.process
    is_emulated = process is not None and process.accel == "tcg"
    return TCG_SYNC_S_PER_GIB * vm.record.spec.memory / GIB if is_emulated else 0.0


def _places(vm: VM, travel: Travel) -> tuple[Place, ...]:
    """Of each disk; a template of several counts for each."""
    record = vm.record
    files = {one.source: one.offer.allocated for one in travel.files}
    mirrors = {one.disk.name: one.offer.allocated for one in travel.mirrors}

    def bytes_of(disk: Disk) -> int:
        images = (Volume(pool=disk.pool, volume=one.volume) for one in chain.images(record, disk))
        return mirrors.get(disk.name, 0) + sum(files.get(one, 0) for one in images)

    return tuple(
        Place(
            disk=disk.name,
            pool=disk.pool,
            to=travel.disk(disk.name).pool,
            travels=disk.name in travel.disks,
            size=bytes_of(disk),
        )
        for disk in record.spec.disks
    )
