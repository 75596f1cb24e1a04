"""Where a VM may be and beside whom: rules that travel with it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sterna.model.disk import STRICT

GROUP = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
HOST = re.compile(r"[^\s,]{1,255}")
DEFAULT_PRIORITY = 50
HIGHEST_PRIORITY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRules:
    """VMs of one `affinity` group want to be on one host, those of an `anti_affinity` group must not.

    `allowed_hosts`: it moves to no other; empty: to all. Those of high `priority` go first.
    """

    __pydantic_config__ = STRICT

    affinity: tuple[str, ...] = ()
    anti_affinity: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    priority: int = DEFAULT_PRIORITY

    def __post_init__(self) -> None:
        for host in self.allowed_hosts:
            if not HOST.fullmatch(host):
                raise ValueError(f"{host!r} is not a name for a host")
        for what, names in (
            ("an affinity group", self.affinity),
            ("an anti-affinity group", self.anti_affinity),
        ):
            for name in names:
                if not GROUP.fullmatch(name):
                    raise ValueError(
                        f"{name!r} is not a name for {what}: use lower-case letters, digits, dots "
                        "and dashes, at most 63"
                    )
        if not 0 <= self.priority <= HIGHEST_PRIORITY:
            raise ValueError(
                f"priority is {self.priority}; it must be between 0 and {HIGHEST_PRIORITY}"
            )
        if both := sorted(set(self.affinity) & set(self.anti_affinity)):
            raise ValueError(f"{', '.join(both)} cannot be a group of both kinds")

    def allows(self, *names: str) -> bool:
        """Whether it may be on a host that has one of these names."""
        return not self.allowed_hosts or not set(self.allowed_hosts).isdisjoint(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The groups of the VMs of a host: name of the group -> names of its VMs there."""

    affinity: dict[str, tuple[str, ...]] = field(default_factory=dict)
    anti_affinity: dict[str, tuple[str, ...]] = field(default_factory=dict)


def groups(vms: Iterable[tuple[str, PlacementRules]]) -> Groups:
    """Of all these VMs, each with its name."""
    together: dict[str, tuple[str, ...]] = {}
    apart: dict[str, tuple[str, ...]] = {}
    for name, rules in sorted(vms, key=lambda one: one[0]):
        for group in rules.affinity:
            together[group] = (*together.get(group, ()), name)
        for group in rules.anti_affinity:
            apart[group] = (*apart.get(group, ()), name)
    return Groups(affinity=together, anti_affinity=apart)
