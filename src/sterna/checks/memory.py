"""Memory and processors of the target, beside what it has promised already."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, Finding, check
from sterna.units import format_size


@check("host.memory", BLOCKER, "The target has memory for the VM, beside what it has promised")
def enough(q: Question) -> Iterator[Finding]:
    if not q.is_off and q.spec.memory > q.target.memory_free:
        yield Finding(
            f"{q.spec.name} needs {format_size(q.spec.memory)}, {q.target.name} has "
            f"{format_size(q.target.memory_free)} to give",
            f"Stop or move a VM of {q.target.name} first",
        )
