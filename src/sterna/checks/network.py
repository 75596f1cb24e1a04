"""Networks: the guest's switches, and the way that moves take."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, Finding, check, there
from sterna.model.host import SwitchFacts
from sterna.model.vm import NIC


def _plugs(q: Question) -> Iterator[tuple[NIC, SwitchFacts | None]]:
    """Each NIC as the target shall have it, and its switch there."""
    have = {facts.switch.name: facts for facts in q.target.switches}
    for nic in q.travel.spec.nics:
        yield nic, have.get(nic.switch)


@check("network.switch-missing", BLOCKER, "The target has the switch of every NIC")
def switch_missing(q: Question) -> Iterator[Finding]:
    for nic, switch in _plugs(q):
        if switch is None:
            yield Finding(
                f"{nic.name} is on switch {nic.switch}, which {q.target.name} lacks",
                "Make it there",
                there(q, f"switch create {nic.switch}"),
            )


@check("network.switch-broken", BLOCKER, "The target's switches of its NICs work")
def switch_broken(q: Question) -> Iterator[Finding]:
    for nic, switch in _plugs(q):
        if switch is not None and switch.problem:
            yield Finding(
                f"switch {nic.switch} of {q.target.name}: {switch.problem}",
                "Mend it, then see",
                there(q, "switch list"),
            )


@check("network.vlan", BLOCKER, "The target's switches can tag the VLANs of the NICs")
def vlan(q: Question) -> Iterator[Finding]:
    for nic, switch in _plugs(q):
        if switch is None or switch.problem or nic.vlan is None or switch.vlans:
            continue
        yield Finding(
            f"{nic.name} is on VLAN {nic.vlan}; switch {nic.switch} of {q.target.name} cannot tag",
            "Boot a kernel with bridge VLAN filtering there",
        )


@check("host.no-migration-address", BLOCKER, "The target has an address where moves arrive")
def migration_address(q: Question) -> Iterator[Finding]:
    if not q.target.migration_address:
        yield Finding(
            f"{q.target.name} has no address where it receives moves",
            f"Set [listen] address or [migration] address in sternad.toml of {q.target.name}",
        )
