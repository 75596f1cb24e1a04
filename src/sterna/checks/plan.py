"""What a move was approved with: the facts that its plan rests on, and what became of them since.

Only what makes it another move is a fact here: where things are and what they are. What changes by
itself from one moment to the next (free memory, rates, times) is asked anew by the checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sterna.checks.facts import Question
from sterna.model.check import Check, Severity
from sterna.model.host import PoolFacts, SwitchFacts
from sterna.model.move import Approved, DiskWish, MoveWishes
from sterna.model.network import tagging
from sterna.model.vm import RunState


def facts(q: Question) -> dict[str, str]:
    """All that the plan rests on, by name; in words, to be read by whoever approves it."""
    spec = q.spec
    found = {
        "vm": f"{spec.name} ({spec.id}) on {q.source.name}",
        "vm.state": "off" if q.guest.state is RunState.OFF else "running",
        "vm.machine": f"{spec.machine}, {spec.vcpus} x {spec.cpu}, {spec.memory} bytes",
        "vm.checkpoints": ", ".join(one.name for one in q.travel.checkpoints) or "none",
    }
    for disk in spec.disks:
        found[f"vm.disk.{disk.name}"] = f"{disk.pool}/{disk.volume} ({disk.format})"
    for cd in spec.cds:
        found[f"vm.cd.{cd.name}"] = str(cd.medium or "empty")
    for nic in spec.nics:
        found[f"vm.nic.{nic.name}"] = f"{nic.mac} on {nic.switch}, {tagging(nic.vlan, nic.trunk)}"
    there = q.target
    found["target"] = f"{there.name}, QEMU {there.qemu.version} under {there.qemu.accel}"
    found["target.address"] = there.migration_address or "none"
    pools = {one.pool.name: one for one in there.pools}
    for disk in q.travel.spec.disks:
        found[f"target.pool.{disk.pool}"] = _pool(pools.get(disk.pool))
        found[f"disk.{disk.name}"] = "travels" if disk.name in q.travel.disks else "stays"
    for medium in q.travel.media:
        found[f"target.pool.{medium.place.pool}"] = _pool(pools.get(medium.place.pool))
    switches = {one.switch.name: one for one in there.switches}
    for nic in q.travel.spec.nics:
        found[f"nic.{nic.name}"] = f"on {nic.switch}"
        found[f"target.switch.{nic.switch}"] = _switch(switches.get(nic.switch))
    return found


def _pool(one: PoolFacts | None) -> str:
    if one is None:
        return "missing"
    kind = "shared" if one.pool.shared else "local"
    return f"{kind}, {one.pool.identity} at {one.pool.path}{_but(one.problem)}"


def _switch(one: SwitchFacts | None) -> str:
    if one is None:
        return "missing"
    kind = "private, " if one.switch.type == "private" else ""
    uplink = f"uplink {one.switch.uplink}" if one.switch.uplink else "no uplink"
    return f"{kind}{uplink}{_but(one.problem)}"


def _but(problem: str) -> str:
    return f"; {problem}" if problem else ""


def settled(q: Question) -> MoveWishes:
    """The wishes with the place of every disk that travels written out, to be read and edited."""
    places = {
        name: replace(q.wishes.disks.get(name, DiskWish()), pool=q.travel.disk(name).pool)
        for name in sorted(q.travel.disks)
    }
    networks = {nic.name: nic.switch for nic in q.travel.spec.nics}
    return replace(q.wishes, disks={**q.wishes.disks, **places}, networks=networks, approved=None)


def changes(approved: Approved, now: dict[str, str], found: Sequence[Check]) -> Iterator[str]:
    """What is not as it was approved, a phrase each."""
    for name in sorted({*approved.facts, *now}):
        old, new = approved.facts.get(name), now.get(name)
        if old is None:
            yield f"{name} is {new}, of which the plan says nothing"
        elif new is None:
            yield f"{name} was {old} and is not any more"
        elif old != new:
            yield f"{name} was {old} and is {new}"
    known = set(approved.findings)
    for one in found:
        if one.id not in known and one.severity is not Severity.INFO:
            yield f"{one.id} was not found then: {one.finding}"
