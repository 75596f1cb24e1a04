"""The machine that QEMU builds for the guest: its type, version and devices."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, Finding, check, here
from sterna.model.machine import newest, oldest, release


@check("qemu.machine-type", BLOCKER, "The target's QEMU offers the VM's machine type")
def machine_type(q: Question) -> Iterator[Finding]:
    there, machine = q.target.qemu, q.spec.machine
    if machine in there.machines:
        return
    first, last = oldest(there.machines), newest(there.machines)
    found = (
        f"{q.spec.name} is a {machine}; QEMU {there.version} of {q.target.name} offers "
        f"{f'{first} to {last}' if last else 'none that we know'}"
    )
    common = newest(set(q.source.qemu.machines).intersection(there.machines))
    if common and release(machine) < release(first):  # given up by QEMU, being so old
        upgrade = f"vm upgrade-version {q.spec.name} --to {common} --yes"
        yield Finding(found, "Stop it, and raise its version for good", here(q, upgrade))
    else:
        yield Finding(
            found,
            f"Install QEMU {q.source.qemu.version}, which {q.source.name} has, on {q.target.name}; "
            f"a version cannot be lowered",
        )
