"""What a host has: switches, pools, and the facts that a peer needs to plan a move."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Literal

from sterna.model.cpu import CPUFacts
from sterna.model.disk import STRICT
from sterna.model.placement import Groups
from sterna.model.settings import HostSettings
from sterna.model.vm import DEVICE_NAME, require_name

SwitchType = Literal["external", "internal", "private"]
MTUS = range(576, 65536)  # RFC 791: what every host must take; what a bridge can carry


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A named virtual switch: a Linux bridge.

    external: reaches beyond the host, by an uplink or because an administrator's own bridge does.
    internal: the guests and their host, which has `address` on it. private: the guests alone.
    """

    __pydantic_config__ = STRICT

    name: str
    type: SwitchType | Literal[""] = ""  # filled in: external with an uplink, else internal
    bridge: str = ""  # interface name; default: made from the switch's name
    uplink: str = ""  # interface that joins the bridge
    address: str = ""  # of the host on an internal switch, with its prefix: 192.0.2.1/24
    mtu: int = 0  # bytes; 0: what the uplink has, 1500 without one

    def __post_init__(self) -> None:
        require_name(self.name, "a switch")
        if self.bridge:
            require_name(self.bridge, "a bridge", DEVICE_NAME)
        if not self.type:
            object.__setattr__(self, "type", "external" if self.uplink else "internal")
        if self.uplink and self.type != "external":
            raise ValueError(f"an {self.type} switch has no uplink; {self.name} has {self.uplink}")
        if self.type == "external" and not (self.uplink or self.bridge):
            raise ValueError(f"the external switch {self.name} needs an uplink, or a bridge")
        if self.mtu and self.mtu not in MTUS:
            raise ValueError(f"mtu is {self.mtu}; it must be between {MTUS[0]} and {MTUS[-1]}")
        if self.address:
            if self.type != "internal":
                raise ValueError("only on an internal switch the host has an address of Sterna's")
            ip_interface(self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchChanges:
    """Body of PATCH /v1/switches/{switch}. What is left out stays; empty texts and 0 clear."""

    __pydantic_config__ = STRICT

    type: SwitchType | None = None
    uplink: str | None = None
    address: str | None = None
    mtu: int | None = None


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
    mtu: int = 0  # largest packet that passes it now; 0: unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class QEMUFacts:
    binary: str
    version: str  # for people; decisions ask for features
    accel: Literal["kvm", "tcg"]
    accel_reason: str  # why not KVM, or how it was proven
    machines: tuple[str, ...]  # versioned machine types


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """How many moves are under way, away from a host and hither; of VMs that run, and of others."""

    away_live: int = 0
    away_off: int = 0
    hither_live: int = 0
    hither_off: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmFacts:
    """As what a host is known in its Kerberos realm, and whether it wants users' tickets with VMs."""

    service: str = ""  # sterna/hv-b.example.com; empty: it takes no tickets
    is_required: bool = False


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
    migration_addresses: tuple[str, ...] = ()  # all that it allows, the preferred one first
    cpu: CPUFacts = field(default_factory=CPUFacts)  # what its guests can see of processors
    cpus_idle: float | None = None  # of `cpus`, over the last second; None: not known yet
    problems: tuple[str, ...] = ()  # records set aside and the like: what an administrator must see
    uplinks: tuple[str, ...] = ()  # interfaces that are free to be the uplink of a switch
    settings: HostSettings = field(default_factory=HostSettings)  # for moves
    groups: Groups = field(default_factory=Groups)  # of affinity, of its VMs
    moving: Moving = field(default_factory=Moving)
    file_limit: int | None = None  # bytes of a file of its QEMUs, memory as well; None: no limit
    realm: RealmFacts = field(default_factory=RealmFacts)
    guardian: str = ""  # its public key, for which VMs' keys are sealed
    has_tpm: bool = False  # swtpm is there
    macs: dict[str, str] = field(default_factory=dict)  # MAC address -> VM that has it, "web net0"
