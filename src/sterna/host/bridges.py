"""Which Linux bridge a switch is, and whether that one and its uplink will do. Pure."""

from __future__ import annotations

import re

from sterna.errors import SwitchUnusable
from sterna.host.iproute import Device
from sterna.host.taps import digest
from sterna.model.host import Switch

MARK = "sterna:"


def bridge_name(switch: Switch) -> str:
    """The bridge of `switch`: the given one, or one made from the switch's name."""
    if switch.bridge:
        return switch.bridge
    plain = re.sub(r"[.-]", "", switch.name)
    if plain == switch.name and len(plain) <= 13:
        return f"br{plain}"
    return f"br{plain[:7]}{digest(switch.name, 6)}"


def require_uplink(switch: Switch, uplink: Device) -> None:
    """Raises SwitchUnusable unless `uplink` is free for `switch`, or its own already."""
    name = bridge_name(switch)
    if uplink.master not in ("", name):
        raise SwitchUnusable(
            switch=switch.name,
            reason=f"its uplink {uplink.name} belongs to {uplink.master} already",
            fix=f"Name {uplink.master} as the bridge, or choose another uplink",
        )
    if uplink.addresses and not uplink.master:
        raise SwitchUnusable(
            switch=switch.name,
            reason=f"its uplink {uplink.name} has the address {uplink.addresses[0]}, which"
            " would no longer answer",
            fix="Choose another uplink, or make a bridge that has the address and name that",
        )


def require_reach(switch: Switch) -> None:
    """Raises SwitchUnusable for an external switch that reaches nothing: its bridge is ours."""
    if switch.type == "external" and not switch.uplink:
        raise SwitchUnusable(
            switch=switch.name,
            reason="it is external, and has no uplink",
            fix="Give it one with --uplink INTERFACE; see: ip link",
        )


def require_bridge(switch: Switch, bridge: Device, uplink: Device | None) -> None:
    """Raises SwitchUnusable if that device cannot be the bridge of `switch`."""
    if bridge.kind != "bridge":
        raise SwitchUnusable(
            switch=switch.name,
            reason=f"{bridge.name} exists and is not a bridge",
            fix="Give the switch another bridge name",
        )
    if bridge.alias.startswith(MARK) and bridge.alias != MARK + switch.name:
        raise SwitchUnusable(
            switch=switch.name,
            reason=f"{bridge.name} is the bridge of switch {bridge.alias.removeprefix(MARK)}",
            fix="Give the switch another bridge name",
        )
    is_ours = bridge.alias == MARK + switch.name
    if is_ours:
        require_reach(switch)
    if not is_ours and (switch.type == "private" or switch.address or switch.mtu):
        raise SwitchUnusable(
            switch=switch.name,
            reason=f"{bridge.name} was not made by Sterna, which changes nothing of it",
            fix="Leave type, address and MTU of the switch out, or let Sterna make a bridge",
        )
    if not is_ours and uplink is not None and not uplink.master:
        raise SwitchUnusable(
            switch=switch.name,
            reason=f"{bridge.name} was not made by Sterna and lacks the uplink {uplink.name}",
            fix=f"Join it yourself: ip link set dev {uplink.name} master {bridge.name}",
        )


def fault(switch: Switch, bridge: Device, uplink: Device | None) -> str:
    """What keeps VMs from using it now; empty: nothing."""
    if not bridge.is_up:
        return f"its bridge {bridge.name} is down"
    if switch.type == "private" and bridge.addresses:
        return f"it is private, and its bridge {bridge.name} has the address {bridge.addresses[0]}"
    if uplink is None:
        return ""
    if not uplink.master:
        return f"its uplink {uplink.name} is not plugged into {bridge.name}"
    if not (uplink.is_up and uplink.has_carrier):
        return f"its uplink {uplink.name} has no link"
    return ""
