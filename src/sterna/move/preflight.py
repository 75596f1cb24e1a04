"""Before a move: facts of both hosts gathered once, all checks, and the plan that comes of them.

Changes nothing anywhere. `sterna check` and every move do the same here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from sterna import clock
from sterna.checks import plan as approval
from sterna.checks import registry
from sterna.checks.facts import GuestFacts, LinkFacts, Question
from sterna.errors import MoveRefused, PlanOutdated, SternaError
from sterna.model.check import Check, MoveReport, Place, Severity, outcome
from sterna.model.disk import Volume
from sterna.model.host import HostFacts
from sterna.model.move import MoveWishes
from sterna.model.travel import Travel
from sterna.model.vm import Disk
from sterna.move import carriers, offer, probe
from sterna.move.carriers import Choice
from sterna.move.peer import Peer, Peers
from sterna.move.storage.facts import users
from sterna.move.travel import measure, plan, shared_pools
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.service import VMs

# What the target calls what a check of ours has found as well.
SAME = {
    "pool.no-room": "storage.no-room",
    "pool.not-found": "storage.pool-missing",
    "pool.unusable": "storage.pool-broken",
    "switch.not-found": "network.switch-missing",
    "switch.unusable": "network.switch-broken",
}


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


class Preflight:
    """Looks at VMs of this host and at the hosts where they want to go."""

    def __init__(self, vms: VMs, peers: Peers, gather: Callable[[], Awaitable[HostFacts]]) -> None:
        self._vms = vms
        self._peers = peers
        self._gather = gather

    async def report(self, vm: VM, wishes: MoveWishes) -> MoveReport:
        """What would become of that move. An error that ends the look is a blocker in it."""
        try:
            prepared = await self.look(vm, wishes, (vm.doing, vm.operation))
        except SternaError as error:
            return self._report(vm, wishes, (as_found(error),))
        travel, choice = prepared.travel, prepared.choice
        return replace(
            self._report(vm, approval.settled(prepared.question), prepared.found),
            facts=approval.facts(prepared.question),
            places=_places(vm, travel),
            carrier=choice.kind if choice else "",
            carrier_reason=choice.reason if choice else "",
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

    async def look(self, vm: VM, wishes: MoveWishes, doing: tuple[str, str] = ("", "")) -> Prepared:
        """Gather all facts and ask all checks. `doing`: who else holds the VM, and its operation.

        Raises HostUnknown, HostUnreachable, VolumeMissing, and MoveRefused for wishes that
        contradict themselves.
        """
        is_here = wishes.target == self._vms.config.name
        peer = None if is_here else self._peers.get(wishes.target)
        source, there, guest, link = await asyncio.gather(  # at once: each takes a moment
            self._gather(),
            _nothing() if peer is None else peer.facts(),
            _guest(vm, doing),
            _link(vm, peer),
        )
        target = there or source
        travel = plan(
            vm.record,
            wishes,
            shared=shared_pools(source, target),
            is_live=vm.record.process is not None,
        )
        travel = await measure(travel, vm.record, self._vms.launcher.pools, source.name)
        question = Question(
            spec=vm.record.spec,
            guest=guest,
            travel=travel,
            source=source,
            target=target,
            wishes=wishes,
            link=link,
            users=users(vm, self._vms, travel.leaving),
        )
        found = registry.run(question)
        if peer is not None:
            found += await self._told(vm, peer, travel, {one.id for one in found})
        return Prepared(
            question=question,
            found=tuple(registry.in_order(found)),
            choice=_choice(vm, question),
        )

    async def _told(self, vm: VM, peer: Peer, travel: Travel, known: set[str]) -> list[Check]:
        """What only the target can see: names and files that are there, the state of its VMs."""
        told = await peer.check(offer.reservation(vm, self._vms, travel))
        named = (replace(one, id=SAME.get(one.id, one.id)) for one in told)
        return [one for one in named if one.id not in known]


async def _nothing() -> None:
    return None


async def _guest(vm: VM, doing: tuple[str, str]) -> GuestFacts:
    process = vm.record.process
    facts = GuestFacts(
        state=vm.state,
        accel=process.accel if process else "",
        doing=doing[0],
        operation=doing[1],
    )
    if vm.process is None or vm.monitor is None:
        return facts
    info, status = await vm.qmp.query_migrate(), await vm.qmp.query_status()
    return replace(facts, blocked=tuple(info.blocked_reasons), status=status)


async def _link(vm: VM, peer: Peer | None) -> LinkFacts:
    if peer is None or vm.process is None:
        return LinkFacts()
    return LinkFacts(rate=await probe.measure(peer))


def _choice(vm: VM, q: Question) -> Choice | None:
    if vm.process is None:
        return None
    measured = carriers.Measured(
        link=q.link.rate,
        used=vm.process.resident(),
        disks=sum(mirror.offer.allocated for mirror in q.travel.mirrors),
        idle_here=q.source.cpus_idle,
        idle_there=q.target.cpus_idle,
        limit=q.wishes.bandwidth,
        max_pause_s=q.wishes.max_downtime_ms / 1000,
    )
    # A broken post-copy is mended from QEMU to QEMU.
    wished = "direct" if q.wishes.on_stall == "postcopy" else q.wishes.carrier
    return carriers.choose(wished, measured)


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


def as_found(error: SternaError) -> Check:
    """An error that ended the look, as a finding."""
    text = str(error.facts["summary"]) if isinstance(error, MoveRefused) else error.message
    return Check(id=error.code, severity=Severity.BLOCKER, finding=text, fix=error.advice)
