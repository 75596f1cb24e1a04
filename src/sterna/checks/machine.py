"""The machine that QEMU builds for the guest: its type, version and devices."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, Finding, check


@check("qemu.machine-type", BLOCKER, "The target's QEMU offers the VM's machine type")
def machine_type(q: Question) -> Iterator[Finding]:
    there = q.target.qemu
    if q.spec.machine not in there.machines:
        yield Finding(
            f"{q.spec.name} is a {q.spec.machine}; QEMU {there.version} of {q.target.name} does "
            f"not offer that",
            f"Install a newer QEMU on {q.target.name}",
        )
