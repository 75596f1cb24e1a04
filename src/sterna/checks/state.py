"""The VM's own state: can it be moved just now?"""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, WARNING, Finding, check, here
from sterna.model.vm import RunState

MOVABLE = (RunState.RUNNING, RunState.PAUSED, RunState.OFF)


@check("vm.busy", BLOCKER, "Nothing else is being done with the VM: no move, no checkpoint")
def busy(q: Question) -> Iterator[Finding]:
    if not q.guest.doing:
        return
    begun = bool(q.guest.operation)
    yield Finding(
        f"{q.spec.name} is busy on {q.source.name}: {q.guest.doing}",
        "Wait until that has ended" if begun else "Ask again in a moment",
        here(q, f"op wait {q.guest.operation}") if begun else "",
        is_safe=begun,
    )


@check("vm.state", BLOCKER, "The VM runs, is paused or is off; nothing in between")
def state(q: Question) -> Iterator[Finding]:
    if q.guest.state not in MOVABLE:
        yield Finding(f"{q.spec.name} is {q.guest.state}", "See", here(q, f"vm show {q.spec.name}"))


@check("vm.qemu-blocks", BLOCKER, "QEMU itself sees no obstacle in the running VM")
def blocked(q: Question) -> Iterator[Finding]:
    for reason in q.guest.blocked:
        yield Finding(
            f"QEMU cannot move {q.spec.name} now: {reason}",
            "Stop it, and move it off",
            here(q, f"vm stop {q.spec.name}"),
        )


@check("secret.no-tpm", BLOCKER, "The target can run the VM's TPM")
def tpm(q: Question) -> Iterator[Finding]:
    if q.spec.tpm and not q.target.has_tpm:
        yield Finding(
            f"{q.spec.name} has a TPM, and {q.target.name} has no swtpm",
            f"Install it on {q.target.name}",
            "apt-get install swtpm",
        )


@check("secret.guardian-missing", BLOCKER, "The target may open the VM's keys")
def guardian(q: Question) -> Iterator[Finding]:
    name = q.target.name
    if q.spec.tpm and q.target.guardian not in q.guest.guardians:
        yield Finding(
            f"the guardian of {name} may not open the keys of {q.spec.name}",
            f"Get it: sterna --host {name} guardian export | sterna guardian import {name} -; then "
            f"authorize it",
            here(q, f"guardian authorize {q.spec.name} {name}"),
        )


@check("vm.tpm-gone", BLOCKER, "The TPM of the running VM is there")
def tpm_gone(q: Question) -> Iterator[Finding]:
    if q.guest.has_lost_tpm:
        yield Finding(
            f"the swtpm of {q.spec.name} has ended: its guest has no TPM, and QEMU cannot move it",
            "Stop it; its next start has its TPM again",
            here(q, f"vm stop {q.spec.name}"),
        )


@check("vm.io-error", WARNING, "The guest does not stand still because its storage failed")
def io_error(q: Question) -> Iterator[Finding]:
    if q.guest.status == "io-error":
        yield Finding(
            f"{q.spec.name} was paused on {q.source.name} because a disk of it gave an error, such "
            f"as a full pool",
            "Mend the storage, then let it go on",
            here(q, f"vm resume {q.spec.name}"),
        )
