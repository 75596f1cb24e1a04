"""What an administrator sets of a host for moves. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

from sterna.model.disk import STRICT
from sterna.units import parse_size

DEFAULT_AT_ONCE = 2  # each has a share of the same link and the same disks
MOST_AT_ONCE = 64
LEAST_BANDWIDTH = 64 << 10  # bytes/s; less would look like a link that is down


def _parse_bandwidth(value: object) -> object:
    if value is None:
        return None
    return 0 if value in ("none", 0) else parse_size(value)


Bandwidth = Annotated[int, BeforeValidator(_parse_bandwidth)]


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

    def __post_init__(self) -> None:
        for name, number in (
            ("live_moves", self.live_moves),
            ("storage_moves", self.storage_moves),
        ):
            if not 1 <= number <= MOST_AT_ONCE:
                raise ValueError(f"{name} is {number}; it must be between 1 and {MOST_AT_ONCE}")
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
