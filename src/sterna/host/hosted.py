"""Whether this host itself is on a switch's bridge, and by which address.

A bridge is a port of its own towards its host. On a private switch that port is closed: no ARP, no
IPv6, no IPv4 packet that comes from there is taken for valid, and where the kernel keeps VLANs
apart, the port is in none. Nobody may listen there but a program that reads raw frames as root.
"""

from __future__ import annotations

import contextlib
from ipaddress import ip_interface
from pathlib import Path

from sterna.host import vlans
from sterna.host.iproute import Device, Run
from sterna.model.network import NATIVE_VLAN

DEFAULT_MTU = 1500  # Ethernet's; of a bridge that shall follow its ports again
SYSCTL = Path("/proc/sys/net")  # of the network namespace that we are in


async def set_reachable(run: Run, bridge: Device, is_reachable: bool) -> None:
    """Open or close the host's own port. Raises NetworkFailed."""
    name = bridge.name
    # Strict reverse-path filtering drops all on an interface without an address, and without it
    # a guest that knows the bridge's MAC reaches any address of the host.
    for path, closed, opened in (
        (f"ipv4/conf/{name}/rp_filter", "1", _default("ipv4/conf/default/rp_filter")),
        (f"ipv6/conf/{name}/disable_ipv6", "1", _default("ipv6/conf/default/disable_ipv6")),
    ):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            (SYSCTL / path).write_text(opened if is_reachable else closed)
    if bridge.can_tag:
        has = {} if is_reachable else vlans.read(
            await run(["bridge", "-j", "vlan", "show", "dev", name], "")
        )  # fmt: skip
        if is_reachable:
            await run(["bridge", "vlan", "add", "dev", name, "vid", str(NATIVE_VLAN), "pvid", "untagged", "self"], "")  # fmt: skip
        for vlan in has:
            await run(["bridge", "vlan", "del", "dev", name, "vid", str(vlan), "self"], "")
    await run(["ip", "link", "set", "dev", name, "arp", "on" if is_reachable else "off"], "")


async def give_address(run: Run, bridge: Device, address: str) -> None:
    """The host is reached by `address` there; nothing for an empty one. Raises NetworkFailed."""
    if address and str(ip_interface(address).ip) not in bridge.addresses:
        await run(["ip", "addr", "replace", address, "dev", bridge.name], "")


async def drop_address(run: Run, bridge: Device, address: str) -> None:
    """The host is not reached by `address` there any more. Raises NetworkFailed."""
    if str(ip_interface(address).ip) in bridge.addresses:
        await run(["ip", "addr", "del", address, "dev", bridge.name], "")


def _default(path: str) -> str:
    try:
        return (SYSCTL / path).read_text()
    except FileNotFoundError:
        return "0"
