"""Processors: what the guest sees of one must be there on the target, too."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, WARNING, Finding, check, here


@check("qemu.accel", BLOCKER, "The target runs guests as the running VM is run: KVM or TCG")
def acceleration(q: Question) -> Iterator[Finding]:
    accel, there = q.guest.accel, q.target.qemu
    if accel and accel != there.accel:
        yield Finding(
            f"{q.spec.name} runs under {accel}, {q.target.name} offers {there.accel} "
            f"({there.accel_reason})",
            f"Make {accel} work on {q.target.name}, or stop it and move it off",
            here(q, f"vm stop {q.spec.name}"),
        )


@check(
    "qemu.saved-accel",
    BLOCKER,
    "A saved state can be loaded on the target: guests run there as when it was written",
)
def saved(q: Question) -> Iterator[Finding]:
    there = q.target.qemu.accel
    state = q.travel.saved
    if state is not None and state.accel != there:
        yield Finding(
            f"the saved state of {q.spec.name} was made under {state.accel}, and {q.target.name} "
            f"runs guests under {there}",
            "Start it and shut it down first, or throw the state away",
            here(q, f"vm discard {q.spec.name}"),
        )


@check(
    "qemu.checkpoint-accel", WARNING, "Memory of checkpoints can be loaded on the target one day"
)
def checkpoints(q: Question) -> Iterator[Finding]:
    there = q.target.qemu.accel
    if any(one.memory and one.memory.accel != there for one in q.travel.checkpoints):
        yield Finding(
            f"the memory of its checkpoints cannot be used on {q.target.name}, which runs guests "
            f"under {there}; their disks can"
        )
