"""Processors: what the guest sees of one must be there on the target, too."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, WARNING, Finding, check, here
from sterna.model.cpu import LEVELS, baseline, gained, lacks, lost

MANY = 6  # names in a sentence; a processor may lack hundreds


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


# ---- what the guest sees of it -------------------------------------------------------------


def _named(features: tuple[str, ...]) -> str:
    more = len(features) - MANY
    return ", ".join(features[:MANY]) + (f" and {more} more" if more > 0 else "")


def _set_level(q: Question) -> str:
    """Give it the highest level that both hosts have; empty: there is none."""
    hosts = {one.name: (one.qemu.accel, one.cpu) for one in (q.source, q.target)}
    level = baseline(hosts).level
    return here(q, f"vm set {q.spec.name} --cpu-compat {level}") if level else ""


def _off(q: Question, text: str) -> Finding:
    """A guest that sees what the target has not can only be moved off."""
    then = _set_level(q)
    later = f"To have it move while it runs from its next start on: {then}. " if then else ""
    return Finding(text, f"{later}Stop it, and move it off", here(q, f"vm stop {q.spec.name}"))


@check("processor.vendor", BLOCKER, "The running guest finds a processor of the same maker")
def vendor(q: Question) -> Iterator[Finding]:
    guest, there = q.guest.cpu, q.target.cpu.vendor
    if guest is None or q.guest.accel != "kvm" or not there:  # the emulator is of any make
        return
    if guest.vendor != there:
        yield _off(
            q,
            f"{q.spec.name} runs on a processor of {guest.vendor}, {q.target.name} has one of "
            f"{there}",
        )


@check("processor.features", BLOCKER, "The target can give all that the running guest sees")
def features(q: Question) -> Iterator[Finding]:
    if q.guest.cpu is None:
        return
    if missing := lost(q.guest.cpu, q.source.cpu, q.target.cpu):
        masked = tuple(one for one in missing if one in q.target.cpu.masked)
        why = f" (qemu.cpu_mask there has {_named(masked)})" if masked else ""
        yield _off(
            q,
            f"the processor of {q.spec.name} has {_named(missing)}, which {q.target.name} cannot "
            f"give{why}",
        )


@check("processor.model", BLOCKER, "The target's QEMU can build the running guest's CPU model")
def model(q: Question) -> Iterator[Finding]:
    choice, there = q.spec.processor, q.target
    if q.guest.cpu is None or choice.model in LEVELS:
        return
    if missing := lacks(choice, there.cpu, there.qemu.accel):
        yield _off(
            q,
            f"the CPU model of {q.spec.name} is {choice.model}; {there.name} with QEMU "
            f"{there.qemu.version} lacks {_named(missing)}",
        )


@check("processor.changes", WARNING, "The running guest's processor stays what it is")
def changes(q: Question) -> Iterator[Finding]:
    choice = q.spec.processor
    if q.guest.cpu is not None and (more := gained(choice, q.guest.cpu, q.target.cpu)):
        yield Finding(
            f"the CPU model of {q.spec.name} is {choice.model}, another processor on each host: on "
            f"{q.target.name} it would find {_named(more)} too",
            "Give it one that is the same everywhere, from its next start",
            _set_level(q),
        )


@check("processor.cannot-start", WARNING, "The VM can be started on the target the next time")
def cannot_start(q: Question) -> Iterator[Finding]:
    wished = q.guest.cpu_next or q.spec.processor
    there = q.target
    if q.guest.cpu is not None and q.guest.cpu_next is None:  # it is asked about as it runs
        return
    if missing := lacks(wished, there.cpu, there.qemu.accel):
        yield Finding(
            f"{q.spec.name} is to start with the processor {wished}, and {there.name} lacks "
            f"{_named(missing)}",
            "Give it one that both hosts have",
            _set_level(q),
        )


@check(
    "processor.saved-features", BLOCKER, "The target can give what a saved guest saw as processor"
)
def saved_features(q: Question) -> Iterator[Finding]:
    if q.travel.saved is None:
        return
    if missing := lacks(q.spec.processor, q.target.cpu, q.target.qemu.accel):
        yield Finding(
            f"the saved state of {q.spec.name} needs the processor {q.spec.processor}, and "
            f"{q.target.name} lacks {_named(missing)}",
            "Start it, shut it down and move it off; or throw the state away",
            here(q, f"vm discard {q.spec.name} --yes"),
        )
