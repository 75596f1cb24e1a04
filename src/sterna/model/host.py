"""What a host has: switches, pools, and the facts that a peer needs to plan a move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sterna.model.disk import STRICT
from sterna.model.vm import DEVICE_NAME, require_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A named virtual switch: a Linux bridge, with an uplink if it reaches beyond the host."""

    __pydantic_config__ = STRICT

    name: str
    bridge: str = ""  # interface name; default: made from the switch's name
    uplink: str = ""  # interface that joins the bridge; empty: internal

    def __post_init__(self) -> None:
        require_name(self.name, "a switch")
        if self.bridge:
            require_name(self.bridge, "a bridge", DEVICE_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A directory for disks. `identity` is written into the directory: two hosts that declare a
    pool shared must read the same one there, so a name alone never proves shared storage.
    """

    __pydantic_config__ = STRICT

    name: str
    path: str  # absolute
    shared: bool = False
    identity: str = ""  # UUID, filled in when the pool is made or joined

    def __post_init__(self) -> None:
        require_name(self.name, "a pool")
        if not self.path.startswith("/"):
            raise ValueError(f"path {self.path!r} must be absolute")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    pool: Pool
    total: int  # bytes
    free: int  # bytes
    problem: str = ""  # why it cannot be used now; empty: it can


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchFacts:
    switch: Switch
    vlans: bool  # the kernel and bridge can tag VLANs
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QEMUFacts:
    binary: str
    version: str  # for people; decisions ask for features
    accel: Literal["kvm", "tcg"]
    accel_reason: str  # why not KVM, or how it was proven
    machines: tuple[str, ...]  # versioned machine types


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host at one moment; gathered once per check, the same on the API."""

    name: str
    sterna: str  # version
    api: int
    time: str
    cpus: int
    memory_total: int  # bytes
    memory_free: int  # bytes that a new guest may take now
    qemu: QEMUFacts
    switches: tuple[SwitchFacts, ...]
    pools: tuple[PoolFacts, ...]
    migration_address: str  # where moves are received
    vms: int
    cpus_idle: float | None = None  # of `cpus`, over the last second; None: not known yet
    problems: tuple[str, ...] = ()  # records set aside and the like: what an administrator must see
