"""The networks of a lab: bridges in a namespace of their own, a cable to each host.

`management` carries the API, `migration` the memory of moves, `data` the guests' own traffic; a
client sits on `data` only. `migration2`, where it was wanted, is a second way for moves. A cable is
a veth pair: its inner end is in the host, its outer end is a port of the bridge. Cables can be
slowed (tbf on both ends) and pulled. All labs use the same addresses: they cannot see each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from sterna.errors import BadSpec
from sterna.lab import netns

FABRIC = "fabric"
CLIENT = "client"
CLIENT_ADDRESS = "10.93.0.254"
GUEST_ADDRESSES = "10.93.0.{}"  # 100 and up are free for guests
PREFIX = 24
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmg])bit")
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
_BURST_S = 0.002  # tbf sends that much at line speed: two ticks of a coarse timer
_MIN_BURST = 128 << 10  # bytes: twice the largest packet that veth hands over in one piece


class Network(StrEnum):
    MANAGEMENT = "management"
    MIGRATION = "migration"
    MIGRATION2 = "migration2"
    DATA = "data"


MIGRATIONS = (Network.MIGRATION, Network.MIGRATION2)  # a lab has the first, or both
_SHORT = {
    Network.MANAGEMENT: "mgmt",
    Network.MIGRATION: "mig",
    Network.MIGRATION2: "mig2",
    Network.DATA: "data",
}
_SUBNET = {
    Network.MANAGEMENT: "10.91.0",
    Network.MIGRATION: "10.92.0",
    Network.MIGRATION2: "10.94.0",
    Network.DATA: "10.93.0",
}


@dataclass(frozen=True, slots=True)
class Cable:
    """From the port `outer` of the bridge of `network` to the interface `inner` of a host."""

    network: Network
    role: str  # host's name, or `client`

    @property
    def inner(self) -> str:
        return f"{_SHORT[self.network]}0"

    @property
    def outer(self) -> str:
        return f"{_SHORT[self.network]}-{self.role}"


def host_address(network: Network, index: int) -> str:
    """Of the host with this number, from 0. Hosts have none on `data`: it is their guests'."""
    return f"{_SUBNET[network]}.{index + 11}"


def subnet(network: Network) -> str:
    return f"{_SUBNET[network]}.0/{PREFIX}"


def bits_per_s(rate: str) -> float:
    """Of `1gbit`, `100mbit`. Raises BadSpec."""
    match = _RATE.fullmatch(rate.lower())
    if match is None or float(match[1]) == 0:
        raise BadSpec(where="rate", reason=f"{rate!r} is not a rate such as 1gbit or 100mbit")
    return float(match[1]) * _BITS[match[2]]


class Links:
    """The cables of one lab. Knows only its name, its hosts and how many of MIGRATIONS it has: all
    state is in the kernel.
    """

    def __init__(self, lab: str, hosts: list[str], migrations: int = 1) -> None:
        self._lab = lab
        self._hosts = hosts
        self.migrations = MIGRATIONS[:migrations]
        self.networks = (Network.MANAGEMENT, *self.migrations, Network.DATA)
        self._fabric = netns.name(lab, FABRIC)

    def make(self) -> None:
        """Make all namespaces, bridges and cables, at full speed."""
        for role in (FABRIC, CLIENT, *self._hosts):
            netns.add(self._lab, netns.name(self._lab, role))
        netns.ip(self._lab, self._fabric, [
            line
            for network in self.networks
            for line in (
                f"link add {_SHORT[network]} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {_SHORT[network]} up",
            )
        ])  # fmt: skip
        for index, host in enumerate(self._hosts):
            for network in (Network.MANAGEMENT, *self.migrations):
                self._plug(Cable(network, host), host_address(network, index))
            self._plug(Cable(Network.DATA, host), "")
        self._plug(Cable(Network.DATA, CLIENT), CLIENT_ADDRESS)

    def shape(self, network: Network, rate: str | None) -> None:
        """Limit each direction of each cable of `network` to `rate`; None lifts the limit."""
        line = f"qdisc replace dev {{}} root {_tbf(rate) if rate else 'noqueue'}"
        cables = [Cable(network, host) for host in self._hosts]
        netns.tc(self._lab, self._fabric, [line.format(cable.outer) for cable in cables])
        for cable in cables:
            netns.tc(self._lab, netns.name(self._lab, cable.role), [line.format(cable.inner)])

    def cut(self, role: str, network: Network) -> None:
        """Pull the cable: the host loses its carrier, what is under way is lost or waits."""
        netns.ip(self._lab, self._fabric, [f"link set {Cable(network, role).outer} down"])

    def restore(self, role: str, network: Network) -> None:
        """Put the cable back in."""
        netns.ip(self._lab, self._fabric, [f"link set {Cable(network, role).outer} up"])

    def _plug(self, cable: Cable, address: str) -> None:
        inside = netns.name(self._lab, cable.role)
        netns.ip(self._lab, self._fabric, [
            f"link add {cable.outer} type veth peer name {cable.inner} netns {inside}",
            f"link set {cable.outer} master {_SHORT[cable.network]} up",
        ])  # fmt: skip
        lines = [f"addr add {address}/{PREFIX} dev {cable.inner}"] if address else []
        netns.ip(self._lab, inside, [*lines, f"link set {cable.inner} up"])


def _tbf(rate: str) -> str:
    burst = max(_MIN_BURST, int(bits_per_s(rate) / 8 * _BURST_S))
    return f"tbf rate {rate} burst {burst}b latency 20ms"
