"""Which VLANs a port of a bridge carries, as iproute2's `bridge vlan` is told. Pure.

A NIC has one native VLAN, whose frames are untagged on its port, and with a trunk more of them,
tagged. The uplink carries them all, tagged; the kernel's own VLAN 1 is what is untagged there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from sterna.model.network import NATIVE_VLAN, parse_trunk, ranges

Membership = Mapping[int, bool]  # VLAN -> whether its frames are untagged on the port
FRESH: Membership = {NATIVE_VLAN: True}  # of a port that has just joined a bridge


def wanted(vlan: int | None, trunk: str) -> Membership:
    """What the port of such a NIC carries."""
    native = vlan or NATIVE_VLAN
    return {**dict.fromkeys(parse_trunk(trunk), False), native: True}


def lines(port: str, has: Membership, wants: Membership, uplink: str) -> list[str]:
    """For `bridge -batch`: from what `port` has to what it wants. What is new comes first."""
    found = []
    for untagged in (True, False):
        new = [one for one, bare in wants.items() if bare == untagged and has.get(one) != bare]
        words = " pvid untagged" if untagged else ""
        # A VLAN that was untagged keeps that word until it is gone.
        old = [one for one in new if one in has]
        found += [f"vlan del dev {port} vid {one}" for one in ranges(old)]
        found += [f"vlan add dev {port} vid {one}{words}" for one in ranges(new)]
    found += [f"vlan del dev {port} vid {one}" for one in ranges(set(has) - set(wants))]
    if uplink:
        tagged = set(wants) - {NATIVE_VLAN}
        found += [f"vlan add dev {uplink} vid {one}" for one in ranges(tagged)]
    return found


def read(answer: str) -> Membership:
    """Of `bridge -j vlan show dev PORT`."""
    found: dict[int, bool] = {}
    for item in json.loads(answer or "[]"):
        for one in item.get("vlans", []):
            first = int(one["vlan"])
            bare = "Egress Untagged" in one.get("flags", [])
            found |= dict.fromkeys(range(first, int(one.get("vlanEnd", first)) + 1), bare)
    return found
