"""Memory and processors of the target, beside what it has promised already."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, WARNING, Finding, check
from sterna.units import format_size


@check("host.memory", BLOCKER, "The target has memory for the VM, beside what it has promised")
def enough(q: Question) -> Iterator[Finding]:
    if not q.is_off and q.spec.memory > q.target.memory_free:
        yield Finding(
            f"{q.spec.name} needs {format_size(q.spec.memory)}, {q.target.name} has "
            f"{format_size(q.target.memory_free)} to give",
            f"Stop or move a VM of {q.target.name} first",
        )


@check("host.file-limit", BLOCKER, "Files of the target's QEMUs may be as large as the VM's memory")
def file_limit(q: Question) -> Iterator[Finding]:
    limit = q.target.file_limit
    if not q.is_off and limit is not None and q.spec.memory > limit:
        yield Finding(
            f"the memory of {q.spec.name} is a file of {format_size(q.spec.memory)}, and sternad of "
            f"{q.target.name} and its QEMUs may have files of {format_size(limit)} (RLIMIT_FSIZE)",
            "Set LimitFSIZE=infinity for sternad there, and restart it",
            "systemctl edit sternad",
        )


@check(
    "host.processors", WARNING, "The target has a processor for each of the VM's, if this host has"
)
def processors(q: Question) -> Iterator[Finding]:
    if q.target.cpus < min(q.spec.vcpus, q.source.cpus):
        yield Finding(
            f"{q.spec.name} has {q.spec.vcpus} processors; {q.source.name} has {q.source.cpus} for "
            f"them, {q.target.name} has {q.target.cpus}",
            "Move it where there are more, or expect it to be slower",
        )
