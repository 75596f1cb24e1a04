"""What two hosts say to each other about one move. Checked at the edge like any other input."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from sterna.model.cpu import CPUChoice
from sterna.model.disk import STRICT, Checkpoint, StateFile, Volume
from sterna.model.vm import ID, OwnershipState, VMSpec

MAX_INT = 2**63 - 1  # of sizes and epochs: what files, QEMU and SQLite can count to
MAX_PORT = 65535
MAX_FILES = 16384
MAX_MIRRORS = 256  # QEMU's block jobs of one VM
MAX_CHANNELS = 64
MAX_STREAMS = 255  # of QEMU's multifd
MAX_NVRAM = 64 << 20  # base64
MAX_TPM = 2 << 20  # characters; the state of a TPM has some 10 kB
MAX_GUARDIANS, MAX_SEALED = 1000, 1000  # of one VM; characters of each
MAX_GRACE_S = 3600.0
MAX_LOOKS = 256
TOKEN = re.compile(r"[0-9a-f]{32}")
OPERATION = re.compile(r"[A-Za-z0-9-]{0,64}")

CarrierKind = Literal["direct", "compression"]
GIVEN_UP = "its source gave the move up"  # reason of a refusal that the source asked for


def _within(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is nowhere
        raise ValueError(f"{what} is {value}; it must be between {low} and {high}")


def _at_most(what: str, items: Iterable[object], high: int) -> None:
    if (count := len(tuple(items))) > high:
        raise ValueError(f"there are {count} {what}; {high} are possible at most")


def _require_base64(name: str, text: str, most: int) -> None:
    _within(f"length of {name}", len(text), 0, most)
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is not base64") from error


def _require_id(vm_id: str) -> None:
    if not ID.fullmatch(vm_id):
        raise ValueError(f"{vm_id!r} is not the id of a VM")


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

    def __post_init__(self) -> None:
        if not self.place.volume:
            raise ValueError("its file has no name")
        _within("size", self.size, 0, MAX_INT)
        _within("allocated", self.allocated, 0, MAX_INT)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorOffer:
    """A disk whose top image the source will fill through the network, by QEMU's mirror."""

    __pydantic_config__ = STRICT

    disk: str
    size: int  # bytes that the guest sees
    allocated: int = 0  # bytes of the image on the source's storage
    bitmaps: tuple[str, ...] = ()  # persistent dirty bitmaps, which QEMU carries along

    def __post_init__(self) -> None:
        _within("size", self.size, 0, MAX_INT)
        _within("allocated", self.allocated, 0, MAX_INT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one channel of a link is awaited."""

    __pydantic_config__ = STRICT

    address: str
    port: int

    def __post_init__(self) -> None:
        _within("port", self.port, 1, MAX_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Where a source may send what it likes for a moment, to see how fast the link is."""

    address: str = ""
    port: int = 0  # 0: none
    is_busy: bool = False  # with others who ask: not now
    endpoints: tuple[Endpoint, ...] = ()  # of all its migration addresses, that one included
    lacking: tuple[str, ...] = ()  # migration addresses that it is to have and has not
    token: str = field(default="", repr=False)  # hexadecimal, sent first

    def __post_init__(self) -> None:
        _within("port", self.port, 0, MAX_PORT)
        _at_most("endpoints", self.endpoints, MAX_CHANNELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Source to target: look whether these are there. `tokens`: by pool, made there just now."""

    __pydantic_config__ = STRICT

    tokens: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # absolute paths
    directories: tuple[str, ...] = ()  # absolute paths, of pools

    def __post_init__(self) -> None:
        for token in self.tokens.values():
            if not TOKEN.fullmatch(token):
                raise ValueError(f"{token!r} is not 32 hexadecimal digits")
        for path in (*self.files, *self.directories):
            if not path.startswith("/"):
                raise ValueError(f"{path!r} must be an absolute path")
        _at_most("tokens", self.tokens, MAX_LOOKS)
        _at_most("files", self.files, MAX_LOOKS)
        _at_most("directories", self.directories, MAX_LOOKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Target to source: what is there of a `Look`."""

    __pydantic_config__ = STRICT

    pools: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    identities: dict[str, str] = field(default_factory=dict)  # by directory; what is no pool is not


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierOffer:
    """The carrier that the source will use. `certificate`: of its relay, PEM, made for this move."""

    __pydantic_config__ = STRICT

    kind: CarrierKind = "direct"
    encrypted: bool = False  # QEMU's own connection, by its TLS; a relay's link always is
    certificate: str = ""
    cache_bytes: int = 0  # that the source's relay may remember of pages
    channels: int = 0  # direct: that QEMU would like to send memory over; 0: a single stream
    addresses: tuple[str, ...] = ()  # of the target, where to arrive, in order; empty: as it likes

    def __post_init__(self) -> None:
        _at_most("addresses", self.addresses, MAX_CHANNELS)
        _within("cache_bytes", self.cache_bytes, 0, MAX_INT)
        _within("channels", self.channels, 0, MAX_STREAMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierReady:
    """The target's end of the carrier. `key` is a secret: never in a record, a journal or a log."""

    __pydantic_config__ = STRICT

    kind: CarrierKind = "direct"
    key: str = field(default="", repr=False)  # direct: pre-shared key of QEMU's TLS, hexadecimal
    certificate: str = ""  # of the target's relay, PEM
    endpoints: tuple[Endpoint, ...] = ()  # of the link's channels
    cache_bytes: int = 0  # what both relays shall remember at most: the smaller wish
    channels: int = 0  # direct: that QEMU awaits the memory on, at most as many as were offered

    def __post_init__(self) -> None:
        _within("cache_bytes", self.cache_bytes, 0, MAX_INT)
        _within("channels", self.channels, 0, MAX_STREAMS)
        _at_most("endpoints", self.endpoints, MAX_CHANNELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Source to target: may this VM come? `operation` and `epoch` are the single-use token."""

    __pydantic_config__ = STRICT

    operation: str  # empty: only a question
    epoch: int  # that the target will own
    source: str  # name of the host that owns it now
    spec: VMSpec  # of the running VM: the target builds the same machine
    live: bool  # False: it is off, only its definition goes
    postcopy: bool = False  # it may have to run here before all its memory is
    paused: bool  # the user's wish, kept
    accel: Literal["kvm", "tcg", ""]  # of the running VM; empty when off
    nvram: str = ""  # base64 of the UEFI variables; a live move carries newer ones by itself
    tpm: str = ""  # base64 of its TPM's state, encrypted; a live move carries it by itself
    protector: dict[str, str] = field(default_factory=dict)  # as in the VM's record
    created: str = ""
    cpu_next: CPUChoice | None = None  # its processor from its next start
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

    def __post_init__(self) -> None:
        _require_id(self.spec.id)
        if not OPERATION.fullmatch(self.operation):
            raise ValueError(f"{self.operation!r} is not the id of an operation")
        if not self.source.isprintable() or not self.source:
            raise ValueError(f"source is {self.source!r}, which is not the name of a host")
        _within("epoch", self.epoch, 1, MAX_INT)
        _within("grace_s", self.grace_s, 0, MAX_GRACE_S)
        _at_most("files", self.files, MAX_FILES)
        _at_most("mirrors", self.mirrors, MAX_MIRRORS)
        _require_base64("nvram", self.nvram, MAX_NVRAM)
        _require_base64("tpm", self.tpm, MAX_TPM)
        if len(self.protector) > MAX_GUARDIANS or any(
            len(key) + len(sealed) > MAX_SEALED for key, sealed in self.protector.items()
        ):
            raise ValueError(f"protector is for at most {MAX_GUARDIANS} guardians")
        self._require_places()

    def _require_places(self) -> None:
        """Each disk is a file, and no file is to be made twice."""
        disks = {disk.name: disk for disk in self.spec.disks}
        for disk in disks.values():
            if not disk.volume:
                raise ValueError(f"disk {disk.name} has no volume")
        if self.mirrors and not self.live:
            raise ValueError("there are mirrors, and the VM is off")
        places = [file.place for file in self.files]
        for mirror in self.mirrors:
            if (top := disks.get(mirror.disk)) is None:
                raise ValueError(f"there is a mirror of {mirror.disk!r}, which the VM has not")
            places.append(Volume(pool=top.pool, volume=top.volume))
        for place, count in Counter(places).items():
            if count > 1:
                raise ValueError(f"{place} is to be made {count} times")

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

    def __post_init__(self) -> None:
        _within("port", self.port, 0, MAX_PORT)
        _within("nbd_port", self.nbd_port, 0, MAX_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejoin:
    """Source to target, in post-copy: the connection is broken. `has_pages`: it may go on.

    `failed`: how many new connections did not come about; the next of the target's addresses is due.
    """

    __pydantic_config__ = STRICT

    vm_id: str
    epoch: int
    has_pages: bool = True
    failed: int = 0

    def __post_init__(self) -> None:
        _require_id(self.vm_id)
        _within("epoch", self.epoch, 1, MAX_INT)
        _within("failed", self.failed, 0, MAX_INT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejoined:
    """Target to source: how the memory of a VM that was taken in post-copy stands."""

    __pydantic_config__ = STRICT

    memory: Literal["whole", "arriving", "waiting", "lost"]  # waiting: connect to that port
    reason: str = ""
    address: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        _within("port", self.port, 0, MAX_PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Source to target: the VM is yours. Sent only after `yielding` is durable on the source."""

    __pydantic_config__ = STRICT

    vm_id: str
    epoch: int

    def __post_init__(self) -> None:
        _require_id(self.vm_id)
        _within("epoch", self.epoch, 1, MAX_INT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Any host to another: what it durably knows of the ownership of a VM."""

    __pydantic_config__ = STRICT

    state: OwnershipState | Literal[""]  # empty: nothing
    epoch: int

    def __post_init__(self) -> None:
        _within("epoch", self.epoch, 0, MAX_INT)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """Target to source: whether a file that was sent reads the same on the target's storage."""

    __pydantic_config__ = STRICT

    state: Literal["checking", "same", "differs"]
    checked: int = 0  # bytes read back so far
