"""Before disks move within a host: plan, facts and findings, for the move itself and for its check.

Changes nothing. `sterna check VM --storage` and every such move do the same here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sterna import clock
from sterna.checks import registry
from sterna.errors import SternaError, VMWrongState
from sterna.model.check import Check, Place, Severity, StorageReport, outcome
from sterna.model.disk import Volume
from sterna.model.move import StorageWishes
from sterna.model.vm import RunState
from sterna.move.storage.facts import gather
from sterna.move.storage.plan import Facts, Plan, Question, check, plan
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.service import VMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was planned, from which facts, and what stands in the way."""

    plan: Plan
    facts: Facts
    found: tuple[Check, ...]


async def look(vm: VM, vms: VMs, wishes: StorageWishes) -> Looked:
    """Gather all facts and ask all checks. Raises VMWrongState, and what QEMU or qemu-img say."""
    if vm.state not in (RunState.RUNNING, RunState.PAUSED, RunState.OFF):
        fix = f"See: sterna vm show {vm.name}"
        raise VMWrongState(action="move the disks of", vm=vm.name, state=vm.state, fix=fix)
    planned = plan(vm.record, wishes)
    facts = await gather(vm, vms, planned)
    found = check(Question(record=vm.record, wishes=wishes, plan=planned, facts=facts))
    return Looked(plan=planned, facts=facts, found=tuple(found))


async def report(vm: VM, vms: VMs, wishes: StorageWishes) -> StorageReport:
    """What would become of that move. An error that ends the look is a blocker in it."""
    found: tuple[Check, ...] = tuple(_busy(vm))
    places: tuple[Place, ...] = ()
    try:
        looked = await look(vm, vms, wishes)
        found += looked.found
        places = tuple(_places(vm, looked))
    except SternaError as error:
        found += (registry.told(error),)
    found = tuple(registry.in_order(found))
    return StorageReport(
        vm=vm.name,
        vm_id=vm.id,
        source=vms.config.name,
        made=clock.now(),
        outcome=outcome(found),
        wishes=wishes,
        findings=found,
        places=places,
    )


def _busy(vm: VM) -> Iterator[Check]:
    if vm.doing:
        yield Check(
            id="vm.busy",
            severity=Severity.BLOCKER,
            finding=f"{vm.name} is busy: {vm.doing}",
            fix=f"Follow it with: sterna op show {vm.operation}" if vm.operation else "Ask again",
        )


def _places(vm: VM, looked: Looked) -> Iterator[Place]:
    """Of each disk."""
    there = {one.disk.name: one.there for one in looked.plan.relocations}
    for disk in vm.record.spec.disks:
        images = (
            Volume(pool=disk.pool, volume=one.volume) for one in chain.images(vm.record, disk)
        )
        goes = disk.name in there
        yield Place(
            disk=disk.name,
            pool=disk.pool,
            to=there[disk.name].pool if goes else disk.pool,
            travels=goes,
            size=sum(looked.facts.sizes.get(one, (0, 0))[1] for one in images) if goes else 0,
        )
