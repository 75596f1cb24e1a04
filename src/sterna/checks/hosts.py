"""The two hosts: can they do this together at all?"""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, Finding, check


@check("host.same", BLOCKER, "The target is another host than the one where the VM is")
def same(q: Question) -> Iterator[Finding]:
    if q.source.name == q.target.name:
        yield Finding(
            f"{q.spec.name} is on {q.target.name} already",
            "Name another host; see",
            "sterna host list",
        )


@check("host.api", BLOCKER, "Both hosts speak the same version of the API")
def api(q: Question) -> Iterator[Finding]:
    if q.source.api != q.target.api:
        yield Finding(
            f"{q.source.name} speaks API {q.source.api}, {q.target.name} speaks {q.target.api}",
            "Bring both hosts to the same version of Sterna",
        )
