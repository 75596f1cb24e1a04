"""Changes of what a VM is: its processor, which waits for its next start, and its version.

A guest that runs, or whose memory is saved, keeps the machine that it was started with: what is
wished meanwhile is kept beside the spec and becomes the spec when it boots.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sterna.errors import BadSpec, VersionRefused, VMWrongState
from sterna.model.cpu import CPUChoice
from sterna.model.machine import release
from sterna.model.vm import RunState, VMRecord
from sterna.vms.launch import Launcher
from sterna.vms.machine import VM

log = logging.getLogger(__name__)


def from_next_start(record: VMRecord) -> dict[str, Any]:
    """Changes of the record of a VM that is about to boot."""
    if (wished := record.cpu_next) is None:
        return {}
    spec = replace(record.spec, cpu=wished.model, cpu_features=wished.features)
    return {"spec": spec, "cpu_next": None}


async def set_processor(vm: VM, choice: CPUChoice, launcher: Launcher) -> None:
    """From its next start, its guest sees that; the caller holds the lease. Raises CPULacking."""
    launcher.require_processor(vm.name, choice)
    wished = None if choice == vm.record.spec.processor else choice
    record = replace(vm.record, cpu_next=wished)
    if vm.state is RunState.OFF and record.saved is None:
        await vm.write(**{"cpu_next": None, **from_next_start(record)})
    else:
        await vm.write(cpu_next=wished)
    log.info("VM %s gets the processor %s", vm.name, choice.text)


async def set_placement(vm: VM, rules: dict[str, Any]) -> None:
    """Change these of its rules, at once; the caller holds the lease. Raises BadSpec."""
    try:
        placement = replace(vm.record.spec.placement, **rules)
    except ValueError as error:
        raise BadSpec(where=f"VM {vm.name}", reason=str(error)) from error
    await vm.write(spec=replace(vm.record.spec, placement=placement))
    log.info("VM %s has other rules for its place: %s", vm.name, rules)


async def set_tags(vm: VM, tags: tuple[str, ...]) -> None:
    """Label it with these and no others, at once; the caller holds the lease."""
    await vm.write(spec=replace(vm.record.spec, tags=tuple(dict.fromkeys(tags))))
    log.info("VM %s is tagged %s", vm.name, ", ".join(tags) or "with nothing")


def require_upgradable(vm: VM, to: str, launcher: Launcher) -> None:
    """Raises VMWrongState unless it is off, VersionRefused if it cannot have that version."""
    if vm.state is not RunState.OFF:
        fix = f"Stop it first: sterna vm stop {vm.name}"
        raise VMWrongState(action="raise the version of", vm=vm.name, state=vm.state, fix=fix)
    now = vm.record.spec.machine
    refusal = ("", "")
    if vm.record.saved is not None:
        refusal = (
            "its saved state could not be loaded any more",
            f"Start it and shut it down, or throw the state away: sterna vm discard {vm.name}",
        )
    elif to not in launcher.capabilities.machines:
        refusal = (
            f"{launcher.host} does not offer it",
            f"See what it offers: sterna host show {launcher.host} -o json",
        )
    elif release(to) <= release(now):
        refusal = ("it is not newer", "A version cannot be lowered, only raised")
    if refusal[0]:
        raise VersionRefused(vm=vm.name, machine=now, to=to, reason=refusal[0], fix=refusal[1])


async def upgrade(vm: VM, to: str, launcher: Launcher) -> None:
    """Raise the version of a VM that is off, for good; the caller holds the lease."""
    require_upgradable(vm, to, launcher)
    now = vm.record.spec.machine
    await vm.write(spec=replace(vm.record.spec, machine=to))
    log.info("VM %s is a %s now, it was a %s", vm.name, to, now)
