"""What an administrator sets of a host for moves. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal

from pydantic import BeforeValidator

from sterna.model.disk import STRICT
from sterna.model.move import DEFAULT_MAX_DOWNTIME_MS, Carrier, require_downtime
from sterna.units import parse_size

DEFAULT_AT_ONCE = 2  # each has a share of the same link and the same disks
MOST_AT_ONCE = 64
LEAST_BANDWIDTH = 64 << 10  # bytes/s; less would look like a link that is down


def _parse_bandwidth(value: object) -> object:
    if value is None:
        return None
    return 0 if value in ("none", 0) else parse_size(value)


def _parse_networks(value: object) -> object:
    return () if value == "any" else value


Bandwidth = Annotated[int, BeforeValidator(_parse_bandwidth)]
Networks = Annotated[tuple[str, ...], BeforeValidator(_parse_networks)]
Encryption = Literal["required", "off"]


def preferred(addresses: Sequence[str], networks: Sequence[str]) -> tuple[str, ...]:
    """Those of `addresses` that lie in `networks`, in the order of these; without networks all."""
    if not networks:
        return tuple(addresses)
    found = (one for net in networks for one in addresses if ip_address(one) in ip_network(net))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What holds now. They are the host's own: a source and a target each keep to theirs."""

    __pydantic_config__ = STRICT

    inbound: bool = True  # VMs may come here
    outbound: bool = True  # VMs may leave
    live_moves: int = DEFAULT_AT_ONCE  # of VMs that run, at a time; away and hither apart
    storage_moves: int = DEFAULT_AT_ONCE  # of disks within the host, and of VMs that are off
    draining: bool = False  # it is emptied: it takes no VM and starts none
    bandwidth: Bandwidth = 0  # bytes/s that all moves away may use together; 0: no limit
    migration_networks: Networks = ()  # CIDRs of own addresses, the preferred first; empty: any
    carrier: Carrier = "auto"  # of moves away that name none
    max_downtime_ms: int = DEFAULT_MAX_DOWNTIME_MS  # of moves away that name none
    encryption: Encryption = "required"  # of QEMU's own connections, away and hither

    def __post_init__(self) -> None:
        for name, number in (
            ("live_moves", self.live_moves),
            ("storage_moves", self.storage_moves),
        ):
            if not 1 <= number <= MOST_AT_ONCE:
                raise ValueError(f"{name} is {number}; it must be between 1 and {MOST_AT_ONCE}")
        require_downtime(self.max_downtime_ms)
        for network in self.migration_networks:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"migration_networks: {error}; write 192.0.2.0/24") from error
        if self.bandwidth and self.bandwidth < LEAST_BANDWIDTH:
            raise ValueError(
                f"bandwidth is {self.bandwidth} bytes/s; it must be at least {LEAST_BANDWIDTH}, "
                f"or none"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChanges:
    """Body of PATCH /v1/host/settings. What is left out stays."""

    __pydantic_config__ = STRICT

    inbound: bool | None = None
    outbound: bool | None = None
    live_moves: int | None = None
    storage_moves: int | None = None
    bandwidth: Bandwidth | None = None  # 0 or "none": no limit
    migration_networks: Networks | None = None  # () or "any": no preference
    carrier: Carrier | None = None
    max_downtime_ms: int | None = None
    encryption: Encryption | None = None
