"""What two hosts say to each other about one move. Checked at the edge like any other input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sterna.model.disk import STRICT, Checkpoint, StateFile, Volume
from sterna.model.vm import OwnershipState, VMSpec

CarrierKind = Literal["direct", "compression"]
GIVEN_UP = "its source gave the move up"  # reason of a refusal that the source asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOffer:
    """A file that nobody writes any more and that the source will send, in chunks with hashes.

    `is_base`: a template, which the target may have already; only then may the file be there, and
    it must have the same content.
    """

    __pydantic_config__ = STRICT

    place: Volume  # on the target
    size: int  # bytes, holes included
    allocated: int = 0  # bytes that it takes on the source's storage
    is_base: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorOffer:
    """A disk whose top image the source will fill through the network, by QEMU's mirror."""

    __pydantic_config__ = STRICT

    disk: str
    size: int  # bytes that the guest sees
    allocated: int = 0  # bytes of the image on the source's storage
    bitmaps: tuple[str, ...] = ()  # persistent dirty bitmaps, which QEMU carries along


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one channel of a link is awaited."""

    __pydantic_config__ = STRICT

    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Where a source may send what it likes for a moment, to see how fast the link is."""

    address: str = ""
    port: int = 0  # 0: not now
    token: str = field(default="", repr=False)  # hexadecimal, sent first


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierOffer:
    """The carrier that the source will use. `certificate`: of its relay, PEM, made for this move."""

    __pydantic_config__ = STRICT

    kind: CarrierKind = "direct"
    encrypted: bool = False  # direct: QEMU's own TLS; a relay's link always is
    certificate: str = ""
    cache_bytes: int = 0  # that the source's relay may remember of pages


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierReady:
    """The target's end of the carrier. `key` is a secret: never in a record, a journal or a log."""

    __pydantic_config__ = STRICT

    kind: CarrierKind = "direct"
    key: str = field(default="", repr=False)  # direct: pre-shared key of QEMU's TLS, hexadecimal
    certificate: str = ""  # of the target's relay, PEM
    endpoints: tuple[Endpoint, ...] = ()  # of the link's channels
    cache_bytes: int = 0  # what both relays shall remember at most: the smaller wish


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Source to target: may this VM come? `operation` and `epoch` are the single-use token."""

    __pydantic_config__ = STRICT

    operation: str
    epoch: int  # that the target will own
    source: str  # name of the host that owns it now
    spec: VMSpec  # of the running VM: the target builds the same machine
    live: bool  # False: it is off, only its definition goes
    postcopy: bool = False  # it may have to run here before all its memory is
    paused: bool  # the user's wish, kept
    accel: Literal["kvm", "tcg", ""]  # of the running VM; empty when off
    nvram: str = ""  # base64 of the UEFI variables; a live move carries newer ones by itself
    created: str = ""
    notes: tuple[str, ...] = ()
    # Images, checkpoints and saved state, in the pools of the target.
    checkpoints: tuple[Checkpoint, ...] = ()
    at: str = ""
    saved: StateFile | None = None
    files: tuple[FileOffer, ...] = field(default=())
    mirrors: tuple[MirrorOffer, ...] = field(default=())
    carrier: CarrierOffer = CarrierOffer()  # of a VM that runs
    grace_s: float = 30.0  # the source may be silent for so long and come back
    seeded: bool = False  # the disks were frozen for this move; another try goes on with the files

    @property
    def is_resumable(self) -> bool:
        """Whether what arrived of the files is of use after a failure."""
        return self.seeded or not self.live


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationStatus:
    """Target to source: where its side of the move stands."""

    operation: str
    state: OwnershipState  # reserved, owned or refused
    reason: str = ""  # why it was refused
    said: str = ""  # the last words of its QEMU, if that ended by itself
    address: str = ""  # where its QEMU waits for the memory
    port: int = 0
    nbd_port: int = 0  # where its QEMU awaits the disks of `mirrors`, each named after its disk
    carrier: CarrierReady | None = None  # only in the answer to open
    pause_ms: float = 0.0  # answer to take: from its arrival until the vCPUs ran
    parts_ms: dict[str, float] | None = None  # the same in parts
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejoin:
    """Source to target, in post-copy: the connection is broken. `has_pages`: it may go on."""

    __pydantic_config__ = STRICT

    vm_id: str
    epoch: int
    has_pages: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejoined:
    """Target to source: how the memory of a VM that was taken in post-copy stands."""

    __pydantic_config__ = STRICT

    memory: Literal["whole", "arriving", "waiting", "lost"]  # waiting: connect to that port
    reason: str = ""
    address: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Source to target: the VM is yours. Sent only after `yielding` is durable on the source."""

    __pydantic_config__ = STRICT

    vm_id: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """Target to source: whether a file that was sent reads the same on the target's storage."""

    __pydantic_config__ = STRICT

    state: Literal["checking", "same", "differs"]
    checked: int = 0  # bytes read back so far
