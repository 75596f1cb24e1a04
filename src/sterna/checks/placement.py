"""Where the VM may be, and beside whom."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, INFO, WARNING, Finding, check, here


@check("placement.host", BLOCKER, "The VM may be on the target, by its own list of hosts")
def allowed(q: Question) -> Iterator[Finding]:
    rules = q.spec.placement
    if not rules.allows(q.target.name, q.wishes.target):
        hosts = ",".join((*rules.allowed_hosts, q.wishes.target))
        yield Finding(
            f"{q.spec.name} may be on {', '.join(rules.allowed_hosts)} only, not on {q.target.name}",
            "If it may be there as well",
            here(q, f"vm set {q.spec.name} --allowed-hosts {shlex.quote(hosts)}"),
        )


@check("placement.anti-affinity", WARNING, "No VM is there from which this one shall be kept apart")
def apart(q: Question) -> Iterator[Finding]:
    for group in q.spec.placement.anti_affinity:
        if others := [
            one for one in q.target.groups.anti_affinity.get(group, ()) if one != q.spec.name
        ]:
            yield Finding(
                f"{q.target.name} has {', '.join(others)} of the anti-affinity group {group} already: "
                f"if it fails, they and {q.spec.name} are off together",
                "Choose another host; see",
                here(q, f"check {q.spec.name}"),
            )


@check("placement.affinity", INFO, "The VMs with which this one wants to be are there")
def together(q: Question) -> Iterator[Finding]:
    for group in q.spec.placement.affinity:
        others = [one for one in q.source.groups.affinity.get(group, ()) if one != q.spec.name]
        if others and group not in q.target.groups.affinity:
            yield Finding(
                f"{', '.join(others)} of the affinity group {group} stay on {q.source.name}",
                "Move them as well",
                here(q, f"move {' '.join((q.spec.name, *others))} {shlex.quote(q.wishes.target)}"),
            )
