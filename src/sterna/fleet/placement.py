"""Which VM goes to which host, when a host is emptied. Pure.

Promises: no host gets more memory or more bytes of disks than it has to give; no two VMs of an
anti-affinity group get one host, nor one a host where another of the group is; a VM gets only
a host that its checks allow. The same question has the same answer. VMs of an affinity group go
together where they can. Who has a higher priority chooses first, whatever that leaves for others.

First-fit by priority and size, tried by two rules for the choice among hosts that have room: the
one with most memory left (load is spread), else the one with least (large ones find room still).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sterna.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A VM that shall leave. `fits`: hosts that its checks allow -> bytes that each pool gets."""

    id: str
    name: str
    memory: int = 0  # bytes that it takes where it comes; none of a VM that is off
    priority: int = 0
    affinity: tuple[str, ...] = ()
    anti_affinity: tuple[str, ...] = ()
    fits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    warned: frozenset[str] = frozenset()  # of those, hosts about which something was found


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A host that may take VMs, and what it has to give. Bytes."""

    name: str
    memory: int
    pools: Mapping[str, int] = field(default_factory=dict)
    affinity: frozenset[str] = frozenset()  # groups of VMs that are there
    anti_affinity: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each goes. `why`: for each that has no place, what each host lacks for it."""

    hosts: dict[str, str]  # id -> host
    why: dict[str, dict[str, str]]  # id -> host -> reason
    split: tuple[str, ...] = ()  # affinity groups whose VMs do not all get one host


class _Taken:
    """A host as it fills."""

    def __init__(self, room: Room) -> None:
        self.name = room.name
        self.memory = room.memory
        self.pools = dict(room.pools)
        self.affinity = set(room.affinity)
        self.anti_affinity = set(room.anti_affinity)

    def lacks(self, guest: Guest) -> str:
        """Why it cannot take that one; empty: it can."""
        if self.name not in guest.fits:
            return "its checks say no"
        if guest.memory > self.memory:
            return f"it has {format_size(max(0, self.memory))} of memory to give, not {format_size(guest.memory)}"
        for pool, size in guest.fits[self.name].items():
            if size > self.pools.get(pool, 0):
                free = format_size(max(0, self.pools.get(pool, 0)))
                return f"its pool {pool} has {free} to give, not {format_size(size)}"
        if met := sorted(self.anti_affinity.intersection(guest.anti_affinity)):
            return f"a VM of the anti-affinity group {met[0]} is there"
        return ""

    def take(self, guest: Guest) -> None:
        self.memory -= guest.memory
        for pool, size in guest.fits[self.name].items():
            self.pools[pool] = self.pools.get(pool, 0) - size
        self.affinity.update(guest.affinity)
        self.anti_affinity.update(guest.anti_affinity)

    def takes_all(self, guests: Sequence[Guest]) -> bool:
        """Whether it has room for all of them together."""
        anti_affinity = frozenset(self.anti_affinity)
        room = Room(
            name=self.name, memory=self.memory, pools=self.pools, anti_affinity=anti_affinity
        )
        tried = _Taken(room)
        for one in guests:
            if tried.lacks(one):
                return False
            tried.take(one)
        return True


Choice = Callable[[_Taken], object]  # the smallest is taken


def in_order(guests: Iterable[Guest]) -> list[Guest]:
    """Of high priority first; of the same the larger first, which is the harder to place."""
    return sorted(guests, key=lambda one: (-one.priority, -one.memory, one.name, one.id))


def place(guests: Sequence[Guest], rooms: Sequence[Room]) -> Placement:
    """A host for each guest, as far as there is one."""
    ordered = in_order(guests)
    spread = _fill(ordered, rooms, lambda host: -host.memory)
    packed = _fill(ordered, rooms, lambda host: host.memory)
    return packed if _worth(packed, ordered) > _worth(spread, ordered) else spread


def _worth(placement: Placement, ordered: Sequence[Guest]) -> list[int]:
    """How many have a place, of each priority, the highest first."""
    priorities = sorted({one.priority for one in ordered}, reverse=True)
    return [
        sum(one.id in placement.hosts for one in ordered if one.priority == priority)
        for priority in priorities
    ]


def _fill(ordered: Sequence[Guest], rooms: Sequence[Room], choice: Choice) -> Placement:
    hosts = [_Taken(room) for room in sorted(rooms, key=lambda room: room.name)]
    chosen: dict[str, str] = {}
    why: dict[str, dict[str, str]] = {}
    for index, guest in enumerate(ordered):
        lacks = {host.name: host.lacks(guest) for host in hosts}
        able = [host for host in hosts if not lacks[host.name]]
        if not able:
            why[guest.id] = lacks
            continue
        own = set(guest.affinity)
        company = [one for one in ordered[index:] if one is guest or own & set(one.affinity)]
        best = min(able, key=lambda host: _rank(host, guest, company, choice))
        best.take(guest)
        chosen[guest.id] = best.name
    return Placement(hosts=chosen, why=why, split=_split(ordered, chosen, rooms))


def _rank(
    host: _Taken, guest: Guest, company: Sequence[Guest], choice: Choice
) -> tuple[object, ...]:
    """Beside its own group, then where all of it has room, then where nothing was found."""
    return (
        not host.affinity.intersection(guest.affinity),
        not host.takes_all(company),
        host.name in guest.warned,
        choice(host),
        host.name,
    )


def _split(
    ordered: Sequence[Guest], chosen: Mapping[str, str], rooms: Sequence[Room]
) -> tuple[str, ...]:
    places: dict[str, set[str]] = {
        group: {room.name for room in rooms if group in room.affinity}
        for one in ordered
        for group in one.affinity
    }
    for one in ordered:
        for group in one.affinity:
            places[group].add(chosen.get(one.id, "where it is"))
    return tuple(sorted(group for group, names in places.items() if len(names) > 1))
