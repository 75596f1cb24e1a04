"""Where each VM of a host would go when that is emptied: what all checks say, and who has room.

Gathers the facts; who goes where is decided by `placement`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from sterna.errors import SternaError, VMNotFound
from sterna.fleet.hosts import Fleet
from sterna.fleet.placement import Guest, Placement, Room, in_order, place
from sterna.fleet.several import AT_ONCE, planned
from sterna.model.check import Check, MoveReport, Outcome, outcome
from sterna.model.host import HostFacts
from sterna.model.move import MoveWishes
from sterna.model.several import DrainWishes, Planned
from sterna.model.vm import RunState
from sterna.move.engine import Moves
from sterna.move.peer import Peers
from sterna.vms.machine import VM


class Survey:
    """Of the VMs of `host` and the hosts that it knows."""

    def __init__(self, host: str, moves: Moves, peers: Peers, fleet: Fleet) -> None:
        self._host = host
        self._moves = moves
        self._peers = peers
        self._fleet = fleet

    async def places(
        self,
        vms: Sequence[VM],
        wishes: DrainWishes,
        tried: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> tuple[list[Planned], list[str]]:
        """Each with its place, in the order in which they go; and what is worth to know.

        `tried`: hosts where a VM, by its id, shall not be tried again.
        """
        targets = wishes.to or tuple(self._peers.names)
        staying = [vm for vm in vms if wishes.keep_off and vm.state is RunState.OFF]
        going = {vm.id: vm for vm in vms if vm not in staying}
        facts = await self._fleet.facts(targets) if targets else {}
        looked = await self._look(list(going.values()), targets, wishes.wishes)
        lost = {one: error for one, error in looked.items() if isinstance(error, SternaError)}
        seen = {
            one: {name: each for name, each in found.items() if name not in tried.get(one, ())}
            for one, found in looked.items()
            if isinstance(found, dict)
        }
        rooms = [_room(name, one) for name, one in facts.items() if isinstance(one, HostFacts)]
        guests = [_guest(going[one], reports) for one, reports in seen.items()]
        placement = place(guests, rooms)
        found = [
            _planned(going[one.id], placement, seen[one.id], self._host) for one in in_order(guests)
        ]
        found += [
            planned(going[one], reason=error.message, fix=error.advice)
            for one, error in lost.items()
            if not isinstance(error, VMNotFound)  # it was deleted meanwhile
        ]
        found += [
            replace(planned(vm, reason="it is off, and stays"), outcome=Outcome.WELL)
            for vm in staying
        ]
        split = [
            f"the VMs of the affinity group {group} do not all get one host"
            for group in placement.split
        ]
        return found, split

    async def _look(
        self, vms: Sequence[VM], targets: Sequence[str], wishes: MoveWishes
    ) -> dict[str, dict[str, MoveReport] | SternaError]:
        """What each would meet on each host, by id and host; or why it cannot be looked at."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(vm: VM) -> dict[str, MoveReport] | SternaError:
            async with turn:
                try:
                    reports = await self._moves.survey(vm.id, wishes, targets)
                except SternaError as error:
                    return error
                return {report.target: report for report in reports}

        if not targets:
            return {vm.id: {} for vm in vms}
        found = await asyncio.gather(*(one(vm) for vm in vms))
        return {vm.id: reports for vm, reports in zip(vms, found, strict=True)}


def _room(name: str, facts: HostFacts) -> Room:
    return Room(
        name=name,
        memory=facts.memory_free,
        pools={one.pool.name: one.free for one in facts.pools if not one.problem},
        affinity=frozenset(facts.groups.affinity),
        anti_affinity=frozenset(facts.groups.anti_affinity),
    )


def _guest(vm: VM, reports: dict[str, MoveReport]) -> Guest:
    spec = vm.record.spec
    rules = spec.placement
    fits: dict[str, dict[str, int]] = {}
    for target, report in reports.items():
        if report.outcome is Outcome.BLOCKED:
            continue
        sizes = fits.setdefault(target, {})
        for each in report.places:
            if each.travels:
                sizes[each.to] = sizes.get(each.to, 0) + each.size
    return Guest(
        id=vm.id,
        name=vm.name,
        memory=0 if vm.state is RunState.OFF else spec.memory,
        priority=rules.priority,
        affinity=rules.affinity,
        anti_affinity=rules.anti_affinity,
        fits=fits,
        warned=frozenset(
            target for target, report in reports.items() if report.outcome is Outcome.WARNED
        ),
    )


def _planned(vm: VM, placement: Placement, reports: dict[str, MoveReport], host: str) -> Planned:
    """Its place; or why it has none, host by host."""
    if (target := placement.hosts.get(vm.id)) is not None:
        return planned(vm, reports[target])
    if not reports:
        reason = f"{host} knows no other host"
        return planned(vm, reason=reason, fix="Pair one: sterna host invite")
    first = {target: _blocker(report) for target, report in reports.items()}
    lacks = placement.why.get(vm.id, {})
    reasons = {
        target: found.finding if found else lacks.get(target, "it does not answer")
        for target, found in first.items()
    }
    told = dict.fromkeys(reasons.values())
    text = "; ".join(
        told if len(told) == 1 else (f"{name}: {reason}" for name, reason in reasons.items())
    )
    fixes = [found.fix for found in first.values() if found and found.fix]
    return planned(vm, reason=text, fix=fixes[0] if fixes else "Make room there, or stop it")


def _blocker(report: MoveReport) -> Check | None:
    found = outcome(report.findings) is Outcome.BLOCKED
    return report.findings[0] if found else None
