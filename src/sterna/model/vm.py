"""A virtual machine: what it is (`VMSpec`) and what this host knows of it (`VMRecord`).

Frozen data without I/O. The types validate themselves at the edge (`sterna.model.edge`): unknown
fields are refused, sizes may be written as `10GiB`, and every rule that needs no host is here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from sterna.model.cpu import SHARED, CPUChoice, require_choice
from sterna.model.disk import (
    STRICT,
    Checkpoint,
    Image,
    ImageFormat,
    StateFile,
    Volume,
    require_file_name,
)
from sterna.model.network import LAST_VLAN, parse_trunk
from sterna.model.placement import PlacementRules
from sterna.units import parse_size

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
DEVICE_NAME = re.compile(r"[a-z][a-z0-9]{0,14}")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a part of file names
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
MAX_VCPUS = 1024
MAX_CDS = 6  # ports of the machine's own AHCI controller

Size = Annotated[int, BeforeValidator(parse_size)]


def require_name(value: str, what: str, pattern: re.Pattern[str] = NAME) -> None:
    """ValueError unless `value` is a name: lower case, digits, dots and dashes."""
    if not pattern.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name for {what}: use lower-case letters, digits"
            + (", dots and dashes, at most 63" if pattern is NAME else ", at most 15")
        )


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk: a file `volume` in `pool`. `size` makes a new one, `image` copies an existing one.

    `base` are the images below it that no checkpoint made, the top first: templates, which other
    VMs may use too. Nothing of Sterna ever writes to them.
    """

    __pydantic_config__ = STRICT

    name: str
    pool: str
    volume: str = ""  # file name in the pool; filled in when the VM is created
    format: ImageFormat = "qcow2"
    size: Size | None = None  # bytes; None: the volume exists, or the image's own size
    image: str = ""  # absolute path of an image to copy, at creation only
    read_only: bool = False
    base: tuple[Image, ...] = ()  # with `size`: a new overlay on it; else filled in at creation

    def __post_init__(self) -> None:
        require_name(self.name, "a disk", DEVICE_NAME)
        require_file_name(self.volume)
        if self.image and not self.image.startswith("/"):
            raise ValueError(f"image {self.image!r} must be an absolute path")


@dataclass(frozen=True, slots=True, kw_only=True)
class CD:
    """One CD drive and the medium in it: a file, as it is, that many VMs may read at once.

    Nothing of Sterna ever writes to a medium or deletes it.
    """

    __pydantic_config__ = STRICT

    name: str
    pool: str = ""  # empty: the drive is empty
    volume: str = ""  # plain file name in the pool

    def __post_init__(self) -> None:
        require_name(self.name, "a CD drive", DEVICE_NAME)
        require_file_name(self.volume)
        if bool(self.pool) != bool(self.volume):
            raise ValueError(f"CD drive {self.name} needs both pool and volume, or neither")

    @property
    def medium(self) -> Volume | None:
        """The file; None if the drive is empty."""
        return Volume(pool=self.pool, volume=self.volume) if self.pool else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CDInsertion:
    """Body of POST /v1/vms/{vm}:insert. `drive`: empty if the VM has one, or one that is empty.

    With `new_drive` a VM that is off gets one more drive, of that name or of the next one.
    """

    __pydantic_config__ = STRICT

    pool: str
    volume: str  # plain file name in the pool
    drive: str = ""
    new_drive: bool = False

    def __post_init__(self) -> None:
        if self.drive:
            require_name(self.drive, "a CD drive", DEVICE_NAME)
        if not self.pool or not self.volume:
            raise ValueError("name the pool and the file of the medium")
        require_file_name(self.volume)


@dataclass(frozen=True, slots=True, kw_only=True)
class CDEjection:
    """Body of POST /v1/vms/{vm}:eject. `drive`: empty if one alone has a medium."""

    __pydantic_config__ = STRICT

    drive: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NIC:
    """One virtio network card, plugged into a switch; untagged unless `vlan` is given."""

    __pydantic_config__ = STRICT

    name: str
    switch: str
    mac: str = ""  # filled in when the VM is created
    vlan: int | None = None  # 1-4094; of its untagged frames
    trunk: str = ""  # VLANs that it may tag itself: 10,20-29; empty: none, an access port

    def __post_init__(self) -> None:
        require_name(self.name, "a NIC", DEVICE_NAME)
        if self.mac and not MAC.fullmatch(self.mac):
            raise ValueError(f"{self.mac!r} is not a MAC address such as 52:54:00:12:34:56")
        if self.mac and int(self.mac[:2], 16) & 1:
            raise ValueError(f"{self.mac} is a multicast address; a NIC needs a unicast one")
        if self.vlan is not None and not 1 <= self.vlan <= LAST_VLAN:
            raise ValueError(f"VLAN {self.vlan} is not between 1 and {LAST_VLAN}")
        if self.vlan in parse_trunk(self.trunk):
            raise ValueError(f"VLAN {self.vlan} is untagged on {self.name}; leave it out of trunk")

    @property
    def has_tags(self) -> bool:
        """Whether its switch must keep VLANs apart."""
        return self.vlan is not None or bool(self.trunk)


def _parse_vlan(value: object) -> object:
    return 0 if value == "none" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class NICChanges:
    """Body of PATCH /v1/vms/{vm}/nics/{nic}. What is left out stays as it is.

    `mac` may change only while the VM is off: an address, or `new`.
    """

    __pydantic_config__ = STRICT

    switch: str | None = None
    vlan: Annotated[int | None, BeforeValidator(_parse_vlan)] = None  # "none": untagged
    trunk: str | None = None  # empty: none
    mac: str | None = None

    def __post_init__(self) -> None:
        if (self.switch, self.vlan, self.trunk, self.mac) == (None, None, None, None):
            raise ValueError("say what shall change: switch, vlan, trunk, mac")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBoot:
    """Boot a kernel from files of the host instead of from a disk."""

    __pydantic_config__ = STRICT

    kernel: str
    initrd: str = ""
    cmdline: str = ""

    def __post_init__(self) -> None:
        for path in (self.kernel, self.initrd):
            if path and not path.startswith("/"):
                raise ValueError(f"{path!r} must be an absolute path")


@dataclass(frozen=True, slots=True, kw_only=True)
class VMSpec:
    """The desired configuration of a VM. `id`, `machine`, MACs and volumes are filled in once, at
    creation, and never change by themselves: both ends of a move build the same machine from it.
    """

    __pydantic_config__ = STRICT

    name: str
    id: str = ""  # UUID
    vcpus: int = 1
    memory: Size = 512 << 20  # bytes
    cpu: str = "x86-64-v2"  # a level that every current host can give, or a QEMU CPU model
    cpu_features: tuple[str, ...] = ()  # over a level: what all hosts share
    machine: str = ""  # versioned machine type, such as pc-q35-7.2: the configuration version
    firmware: Firmware = Firmware.BIOS
    tpm: bool = False  # a TPM 2.0, whose state goes with the VM
    disks: tuple[Disk, ...] = ()
    cds: tuple[CD, ...] = ()
    nics: tuple[NIC, ...] = ()
    boot: DirectBoot | None = None
    graphics: bool = True  # VGA with VNC on a Unix socket
    tags: tuple[str, ...] = ()
    placement: PlacementRules = field(default_factory=PlacementRules)

    def __post_init__(self) -> None:
        require_name(self.name, "a VM")
        if self.id and not ID.fullmatch(self.id):
            raise ValueError(f"id {self.id!r} is no UUID")
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise ValueError(f"vcpus is {self.vcpus}; it must be between 1 and {MAX_VCPUS}")
        if self.memory < 16 << 20 or self.memory % (1 << 20):
            raise ValueError(f"memory is {self.memory} bytes; it must be whole MiB, at least 16MiB")
        require_choice(self.cpu, self.cpu_features)
        if len(self.cds) > MAX_CDS:
            raise ValueError(
                f"{len(self.cds)} CD drives are too many: a machine has {MAX_CDS} at most"
            )
        for tag in self.tags:
            require_name(tag, "a tag")
        for what, names in (
            ("disks", [disk.name for disk in self.disks]),
            ("CD drives", [cd.name for cd in self.cds]),
            ("NICs", [nic.name for nic in self.nics]),
            ("NICs with MAC", [nic.mac for nic in self.nics if nic.mac]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"two {what} are called {', '.join(sorted(twice))}")

    @property
    def processor(self) -> CPUChoice:
        """What its guest sees as a processor."""
        return CPUChoice(model=self.cpu, features=self.cpu_features)


@dataclass(frozen=True, slots=True, kw_only=True)
class VMChanges:
    """Body of PATCH /v1/vms/{vm}. `cpu_compat`: a level, `shared` or a model of QEMU.

    `share_with`: the hosts that shall share the processor with the VM's own; empty: all it knows.
    The others are those of `PlacementRules`. What is left out stays as it is.
    """

    __pydantic_config__ = STRICT

    cpu_compat: str | None = None
    share_with: tuple[str, ...] = ()
    affinity: tuple[str, ...] | None = None
    anti_affinity: tuple[str, ...] | None = None
    allowed_hosts: tuple[str, ...] | None = None
    priority: int | None = None
    tags: tuple[str, ...] | None = None

    @property
    def placement(self) -> dict[str, Any]:
        """The rules that shall change, by name."""
        names = ("affinity", "anti_affinity", "allowed_hosts", "priority")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def __post_init__(self) -> None:
        if self.cpu_compat is not None:
            require_choice(self.cpu_compat, ())
        elif not self.placement and self.tags is None:
            raise ValueError(
                "say what shall change: cpu_compat, affinity, anti_affinity, allowed_hosts, "
                "priority, tags"
            )
        for tag in self.tags or ():
            require_name(tag, "a tag")
        if self.share_with and self.cpu_compat != SHARED:
            raise ValueError(f"share_with goes with cpu_compat {SHARED} only")


class RunState(StrEnum):
    """What a VM is doing, as users see it."""

    OFF = "off"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    MOVING_IN = "moving-in"  # its QEMU waits here for an incoming move
    UNKNOWN = "unknown"  # in doubt: see its operation
    DAMAGED = "damaged"  # its record cannot be read


class OwnershipState(StrEnum):
    """DESIGN section 4. vCPUs may run only under OWNED."""

    OWNED = "owned"
    YIELDING = "yielding"
    RELEASED = "released"
    RESERVED = "reserved"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """Who may run the VM, as this host durably knows it. `operation` is the move's single-use
    token: a `take` counts only if epoch and operation both match the reservation.
    """

    state: OwnershipState
    epoch: int
    operation: str = ""  # of the move, while not OWNED; of the last move, afterwards
    peer: str = ""  # the other end of that move


@dataclass(frozen=True, slots=True)
class Fence:
    """A host that a human declared to be off, and the epoch that was taken back from it."""

    peer: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """How a file looked when the VM that it belongs to was given away."""

    pool: str
    volume: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QEMUProcess:
    """Identity of a VM's QEMU that survives us: pids are reused, (boot, pid, start time) is not."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat
    boot_id: str
    accel: Literal["kvm", "tcg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VMRecord:
    """All that a host keeps durably of one VM, one file each. `process` is set before QEMU's vCPUs
    may run and cleared after it has ended; `paused` is the user's wish, for when we must continue.
    """

    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    spec: VMSpec
    ownership: Ownership
    process: QEMUProcess | None = None
    paused: bool = False
    created: str = ""
    moving: str = (
        ""  # operation that is moving it away; set before the target is asked for anything
    )
    owned_epoch: int = 0  # newest epoch that this host took over; answers a late question
    fenced: tuple[Fence, ...] = ()  # told until they answer that they own it no more
    stamps: tuple[Stamp, ...] = ()  # of its shared disks, written with `yielding`
    notes: tuple[str, ...] = field(default=())  # what happened to it that its owner should know
    checkpoints: tuple[Checkpoint, ...] = ()  # parents before children
    at: str = ""  # id of the checkpoint that the disks' top images rest on; empty: none
    saved: StateFile | None = None  # it is off, and goes on from here when it is started
    # Files that a step which is under way has made: removed by whoever undoes or recovers it.
    # Written before the first of them is made, emptied when they belong to the VM.
    made: tuple[Volume, ...] = ()
    # Files that the target of a move will have: written with `moving`, removed once released.
    departing: tuple[Volume, ...] = ()
    # Files that another place of this host has now: removed as soon as that step is through, retried at start.
    leaving: tuple[Volume, ...] = ()
    protector: dict[str, str] = field(
        default_factory=dict
    )  # guardian's public key -> its sealed key
    # What its guest sees as a processor from its next start; None: what the spec says.
    cpu_next: CPUChoice | None = None
