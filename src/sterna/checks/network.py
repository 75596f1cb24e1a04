"""Networks: the guest's switches, and the way that moves take."""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, INFO, WARNING, Finding, check, here, there
from sterna.model.check import Way, WayState
from sterna.model.host import SwitchFacts
from sterna.model.network import tagging
from sterna.model.vm import NIC

ETHERNET = 1500  # bytes of a packet; what guests send unless they were told otherwise


def _plugs(q: Question) -> Iterator[tuple[NIC, SwitchFacts | None, SwitchFacts | None]]:
    """Each NIC as the target shall have it, its switch here and its switch there."""
    here = {facts.switch.name: facts for facts in q.source.switches}
    have = {facts.switch.name: facts for facts in q.target.switches}
    for old, nic in zip(q.spec.nics, q.travel.spec.nics, strict=True):
        yield nic, here.get(old.switch), have.get(nic.switch)


@check("network.switch-missing", BLOCKER, "The target has the switch of every NIC")
def switch_missing(q: Question) -> Iterator[Finding]:
    for nic, mine, switch in _plugs(q):
        if switch is None:
            words, command = _make(q, nic.switch, mine)
            yield Finding(
                f"{nic.name} is on switch {nic.switch}, which {q.target.name} lacks",
                words + _others(q, nic, mine),
                command,
            )


@check("network.switch-differs", BLOCKER, "Switches of the same name are of the same type")
def switch_differs(q: Question) -> Iterator[Finding]:
    for nic, mine, switch in _plugs(q):
        if switch is None or mine is None or nic.switch != mine.switch.name:
            continue  # mapped: somebody has chosen
        if switch.switch.type == mine.switch.type:
            continue
        words, command = "Make it the same there", ""
        uplink = _uplink(q, mine)
        if mine.switch.type != "external":
            command = there(q, f"switch set {nic.switch} --type {mine.switch.type}")
        elif uplink:
            command = there(q, f"switch set {nic.switch} --type external --uplink {uplink}")
        yield Finding(
            f"switch {nic.switch} of {nic.name} is {mine.switch.type} on {q.source.name} and "
            f"{switch.switch.type} on {q.target.name}",
            words + _others(q, nic, mine),
            command,
        )


@check("network.switch-broken", BLOCKER, "The target's switches of its NICs work")
def switch_broken(q: Question) -> Iterator[Finding]:
    for nic, _, switch in _plugs(q):
        if switch is not None and switch.problem:
            yield Finding(
                f"switch {nic.switch} of {q.target.name}: {switch.problem}",
                "Mend it, then see",
                there(q, f"switch show {nic.switch}"),
            )


@check("network.vlan", BLOCKER, "The target's switches can tag the VLANs of the NICs")
def vlan(q: Question) -> Iterator[Finding]:
    for nic, _, switch in _plugs(q):
        if switch is None or switch.problem or not nic.has_tags or switch.vlans:
            continue
        yield Finding(
            f"{nic.name} is on {tagging(nic.vlan, nic.trunk)}; switch {nic.switch} of "
            f"{q.target.name} cannot tag",
            "Boot a kernel with bridge VLAN filtering there",
        )


def _narrow(q: Question) -> Iterator[tuple[int, Finding]]:
    """Each NIC whose packets may be too large for its switch there, and what passes there."""
    for nic, mine, switch in _plugs(q):
        if mine is None or switch is None or not 0 < switch.mtu < mine.mtu:
            continue
        yield (
            switch.mtu,
            Finding(
                f"{nic.name} may send packets of {mine.mtu} bytes on {q.source.name}; switch "
                f"{nic.switch} of {q.target.name} drops what is larger than {switch.mtu}",
                "Widen it",
                there(q, f"switch set {nic.switch} --mtu {mine.mtu}"),
                is_safe=True,
            ),
        )


@check("network.mtu", BLOCKER, "Packets of the usual size pass the target's switches")
def mtu(q: Question) -> Iterator[Finding]:
    yield from (found for passes, found in _narrow(q) if passes < ETHERNET)


@check("network.mtu-smaller", WARNING, "The target's switches pass packets as large as here")
def mtu_smaller(q: Question) -> Iterator[Finding]:
    yield from (found for passes, found in _narrow(q) if passes >= ETHERNET)


@check("network.island", INFO, "What a NIC reaches here, it reaches from the target")
def island(q: Question) -> Iterator[Finding]:
    for nic, mine, switch in _plugs(q):
        if mine is None or switch is None or switch.problem or switch.switch.type == "external":
            continue
        if mine.switch.type == switch.switch.type:
            yield Finding(
                f"{nic.name} will be on {nic.switch}, which is {switch.switch.type}: it does not "
                f"reach out of {q.target.name}, nor what it reaches on {q.source.name} now",
                f"Move the VMs that belong together, or plug it into an external switch"
                f"{_others(q, nic, None)}",
            )


@check("network.cut-off", WARNING, "A NIC that reaches out of this host reaches out of the target")
def cut_off(q: Question) -> Iterator[Finding]:
    for nic, mine, switch in _plugs(q):
        if mine is None or switch is None or nic.switch == mine.switch.name:
            continue  # of one name they would differ, which is a blocker
        if mine.switch.type == "external" != switch.switch.type:
            yield Finding(
                f"{nic.name} reaches the network of {mine.switch.uplink} on {q.source.name}; on "
                f"{nic.switch} of {q.target.name}, which is {switch.switch.type}, it reaches only VMs "
                f"of {q.target.name}"
                + (" and that host itself" if switch.switch.type == "internal" else ""),
                f"Leave --network out, or plug it into an external switch{_others(q, nic, None)}",
            )


@check("network.mac-taken", BLOCKER, "No VM of the target has a MAC address of the VM")
def mac_taken(q: Question) -> Iterator[Finding]:
    for nic in q.travel.spec.nics:
        other, _, its = q.target.macs.get(nic.mac, "").partition(" ")
        if not other or other == q.spec.name:
            continue
        yield Finding(
            f"{nic.name} has the MAC address {nic.mac}, and so has {its} of {other} on "
            f"{q.target.name}",
            f"Give that one another while {other} is off",
            there(q, f"vm nic set {other} {its} --mac new"),
        )


def _uplink(q: Question, mine: SwitchFacts | None) -> str:
    """An interface of the target that is free for such a switch; empty: none, or several."""
    free = q.target.uplinks
    if mine is not None and mine.switch.uplink in free:
        return mine.switch.uplink
    return free[0] if len(free) == 1 else ""


def _make(q: Question, name: str, mine: SwitchFacts | None) -> tuple[str, str]:
    """How to make a switch there like the one here: a phrase and the command, if it is known."""
    wide = f" --mtu {mine.mtu}" if mine is not None and mine.mtu > ETHERNET else ""
    if mine is None or mine.switch.type != "external":
        kind = " --type private" if mine is not None and mine.switch.type == "private" else ""
        return "Make it there", there(q, f"switch create {name}{kind}{wide}")
    if uplink := _uplink(q, mine):
        return "Make it there", there(q, f"switch create {name} --uplink {uplink}{wide}")
    free = ", ".join(q.target.uplinks) or "none"
    return f"Make it there with --uplink INTERFACE (free ones: {free})", ""


def _others(q: Question, nic: NIC, mine: SwitchFacts | None) -> str:
    """The other way: switches there that would do as well."""
    kind = mine.switch.type if mine is not None else "external"
    fit = [
        one.switch.name
        for one in q.target.switches
        if one.switch.type == kind and not one.problem and one.switch.name != nic.switch
        if one.vlans or not nic.has_tags
    ]
    return f", or name another of {', '.join(fit)} with --network {nic.name}=SWITCH" * bool(fit)


def _closed(q: Question, state: WayState) -> Iterator[Way]:
    """Ways of that state, if the move needs one and none is open."""
    ways = q.link.ways
    if (q.is_off and not q.travel.files) or any(way.state == "open" for way in ways):
        return iter(())
    return (way for way in ways if way.state == state)


@check("network.not-tried", WARNING, "The way to the target could be tried")
def not_tried(q: Question) -> Iterator[Finding]:
    if q.link.is_busy:
        yield Finding(
            f"whether {q.target.name} can be connected to was not tried: too many others ask it now",
            "Check again in a moment",
        )


@check("network.blocked", BLOCKER, "No firewall is in the way of the migration network")
def blocked(q: Question) -> Iterator[Finding]:
    for way in _closed(q, "blocked"):
        yield Finding(
            f"{way.address} of {q.target.name} is there, and its TCP port {way.port} cannot be "
            f"connected to from {q.source.name}: {way.reason}",
            f"Let TCP from {q.source.name} through to {way.address}, "
            + ("to that port" if q.is_off else "to all ports of net.ipv4.ip_local_port_range"),
        )


@check("network.unreachable", BLOCKER, "An address of the migration network answers")
def unreachable(q: Question) -> Iterator[Finding]:
    for way in _closed(q, "unreachable"):
        yield Finding(
            f"{way.address}, where {q.target.name} receives moves, does not answer "
            f"{q.source.name} at all: {way.reason}",
            "Look at its cable and at the way there",
            f"ip route get {way.address}",
        )


@check("network.address-absent", BLOCKER, "The target has the address where it receives moves")
def address_absent(q: Question) -> Iterator[Finding]:
    for way in _closed(q, "absent"):
        yield Finding(
            f"no interface of {q.target.name} has {way.address}, where it is to receive moves",
            "Give it that address, or another one in [migration] of its configuration",
        )


@check("network.none-allowed", BLOCKER, "A way to the target is in the source's migration networks")
def none_allowed(q: Question) -> Iterator[Finding]:
    opened = [way for way in q.link.ways if way.state == "open"]
    networks = q.source.settings.migration_networks
    if not networks or not opened or q.link.addresses or (q.is_off and not q.travel.files):
        return
    ways = ", ".join(f"{way.address} from {way.local}" for way in opened)
    yield Finding(
        f"{q.source.name} uses {', '.join(networks)} only for moves, "
        f"and reaches {q.target.name} at {ways}",
        "Let it use any of its networks",
        here(q, "host set --migration-networks any"),
    )


@check("network.way-lost", WARNING, "Every migration address of the target connects")
def way_lost(q: Question) -> Iterator[Finding]:
    if any(way.state == "open" for way in q.link.ways):
        for way in q.link.ways:
            if way.state != "open":
                yield Finding(
                    f"{way.address} of {q.target.name} is {way.state} from {q.source.name}: "
                    f"{way.reason}; the move goes another way",
                    "Mend it to have both",
                )
