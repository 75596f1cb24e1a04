"""VLANs as they are written: numbers, and lists of numbers and ranges. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable

NATIVE_VLAN = 1  # the kernel's default for untagged frames; never seen on a wire
LAST_VLAN = 4094  # IEEE 802.1Q
_PART = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def parse_trunk(text: str) -> frozenset[int]:
    """The VLANs of `10,20-29`. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not NATIVE_VLAN < first <= last <= LAST_VLAN:
            raise ValueError(
                f"trunk {part!r} is neither a VLAN nor a range between 2 and {LAST_VLAN}, such as "
                f"10,20-29"
            )
        found.update(range(first, last + 1))
    return frozenset(found)


def ranges(vlans: Iterable[int]) -> list[str]:
    """`{10, 20, 21}` as `["10", "20-21"]`."""
    found: list[list[int]] = []
    for vlan in sorted(vlans):
        if found and vlan == found[-1][1] + 1:
            found[-1][1] = vlan
        else:
            found.append([vlan, vlan])
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]


def tagging(vlan: int | None, trunk: str) -> str:
    """How a NIC is plugged in, in words."""
    native = "untagged" if vlan is None else f"VLAN {vlan}"
    return f"{native}, trunk {trunk}" if trunk else native
