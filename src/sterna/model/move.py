"""A move: what is wished for, what was found, what was decided, what happened. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator

from sterna.model.disk import STRICT, ImageFormat
from sterna.model.vm import Size
from sterna.units import format_duration, format_rate, parse_size

DEFAULT_MAX_DOWNTIME_MS = 300  # a pause that few protocols and no person notices
DEFAULT_KEEP_DAYS = 7.0  # a week shows whether all went well
LONGEST_DAYS = 36500.0  # a century; the calendar ends, too
LONGEST_DEADLINE_S = 31_536_000.0  # a year
DEFAULT_PARALLEL_DISKS = 2  # more only make the storage of both sides seek


# mirror: QEMU copies the disks as the guest writes them. seed: what they hold is frozen and goes as
# files, compressed, and a try that failed is gone on with; only what is written since is mirrored.
DiskCopy = Literal["auto", "mirror", "seed"]


# What to do about a guest that changes its memory as fast as it travels: sterna.move.policy.
OnStall = Literal["auto", "wait", "throttle", "postcopy", "abort"]


# direct: QEMU to QEMU. compression: by relays that send only what the target lacks. auto: measured.
Carrier = Literal["auto", "direct", "compression"]


def _parse_limit(value: object) -> int:
    return 0 if value in ("none", 0) else parse_size(value)


Limit = Annotated[int, BeforeValidator(_parse_limit)]


class Phase(StrEnum):
    """DESIGN section 5. The order here is the order of a move."""

    PLAN = "plan"
    RESERVE = "reserve"
    DISKS = "disks"
    MEMORY = "memory"
    HANDOVER = "handover"
    POSTCOPY = "postcopy"  # only then: the guest runs on the target, memory follows
    TIDY = "tidy"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskWish:
    """Where one disk shall go, and as what; empty: as the move as a whole says, as it is."""

    __pydantic_config__ = STRICT

    pool: str = ""
    format: ImageFormat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """What a move was checked and approved with; taken from the report of its check."""

    __pydantic_config__ = STRICT

    facts: dict[str, str]
    findings: tuple[str, ...] = ()  # ids


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveWishes:
    """What the user asks for, beyond VM and target. The body of POST /v1/vms/{vm}/moves."""

    __pydantic_config__ = STRICT

    target: str
    max_downtime_ms: int | None = None  # None: as the source's settings say
    bandwidth: Size | None = None  # bytes/s; None: as fast as the network goes
    deadline_s: float | None = None  # give up and undo after that long; None: no limit
    on_stall: OnStall = "auto"
    pool: str = ""  # of the target, for all disks that travel; empty: the pool of the same name
    disks: dict[str, DiskWish] = field(default_factory=dict)  # by the disk's name
    networks: dict[str, str] = field(default_factory=dict)  # NIC -> switch of the target
    flatten: bool = False  # the target gets each disk as one image, without what it rests on
    keep_source: bool = False  # the source's files stay, under another name, for `keep_days`
    keep_days: float | None = None  # DEFAULT_KEEP_DAYS
    parallel_disks: int = DEFAULT_PARALLEL_DISKS
    disk_copy: DiskCopy = "auto"  # of a VM that runs
    carrier: Carrier | None = None  # of a VM that runs; None: as the source's settings say
    approved: Approved | None = None  # refuse it if anything is not as it was then

    def __post_init__(self) -> None:
        if self.max_downtime_ms is not None:
            require_downtime(self.max_downtime_ms)
        if self.deadline_s is not None:
            _require_seconds("deadline_s", self.deadline_s, LONGEST_DEADLINE_S)
        _require_limits(self.parallel_disks)
        _require_keeping(self.keep_source, self.keep_days)

    @property
    def pause_ms(self) -> int:
        """The longest pause that is wished for."""
        return DEFAULT_MAX_DOWNTIME_MS if self.max_downtime_ms is None else self.max_downtime_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """Wishes that may change while a move is under way. Body of PATCH /v1/operations/{operation}.

    What is left out stays as it is.
    """

    __pydantic_config__ = STRICT

    max_downtime_ms: int | None = None
    bandwidth: Limit | None = None  # bytes/s; "none": lift the limit, which reads as 0 then

    def __post_init__(self) -> None:
        if self.max_downtime_ms is not None:
            require_downtime(self.max_downtime_ms)
        if self.max_downtime_ms is None and self.bandwidth is None:
            raise ValueError("say what shall change: bandwidth, max_downtime_ms")

    def of(self, wishes: MoveWishes) -> MoveWishes:
        """Those wishes, changed."""
        pause_ms = wishes.max_downtime_ms if self.max_downtime_ms is None else self.max_downtime_ms
        bandwidth = wishes.bandwidth if self.bandwidth is None else self.bandwidth or None
        return replace(wishes, max_downtime_ms=pause_ms, bandwidth=bandwidth)

    @property
    def told(self) -> str:
        """What was changed, for a log."""
        said = []
        if self.bandwidth is not None:
            said.append(f"at most {format_rate(self.bandwidth)}" if self.bandwidth else "no limit")
        if self.max_downtime_ms is not None:
            said.append(f"a pause of at most {format_duration(self.max_downtime_ms / 1000)}")
        return f"changed by its user: {' and '.join(said)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageWishes:
    """Disks to another pool of the same host. Body of POST /v1/vms/{vm}/storage-moves.

    With `pool` all of them and the VM's other files; with `disks` those alone, or elsewhere.
    """

    __pydantic_config__ = STRICT

    pool: str = ""
    disks: dict[str, DiskWish] = field(default_factory=dict)
    bandwidth: Size | None = None  # bytes/s; None: as fast as the storage goes
    flatten: bool = False
    keep_source: bool = False
    keep_days: float | None = None  # DEFAULT_KEEP_DAYS
    parallel_disks: int = DEFAULT_PARALLEL_DISKS

    def __post_init__(self) -> None:
        if not self.pool and not any(wish.pool or wish.format for wish in self.disks.values()):
            raise ValueError("name a pool, or where at least one disk shall go")
        _require_limits(self.parallel_disks)
        _require_keeping(self.keep_source, self.keep_days)


def require_downtime(ms: int) -> None:
    """Raises ValueError if QEMU would not take that."""
    if not 1 <= ms <= 2_000_000:  # QEMU's own limit
        raise ValueError(f"max_downtime_ms is {ms}; it must be between 1 and 2000000")


def _require_keeping(keep_source: bool, keep_days: float | None) -> None:
    if keep_days is None:
        return
    if not keep_source:
        raise ValueError(f"keep_days is {keep_days}, but nothing is kept; set keep_source as well")
    _require_seconds("keep_days", keep_days, LONGEST_DAYS)


def _require_limits(parallel_disks: int) -> None:
    if not 1 <= parallel_disks <= 64:
        raise ValueError(f"parallel_disks is {parallel_disks}; it must be between 1 and 64")


def _require_seconds(what: str, value: float, most: float) -> None:
    if not 0 < value <= most:  # NaN is nowhere
        raise ValueError(f"{what} is {value}; it must be more than zero, and {most:.0f} at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelProgress:
    """One channel of a link at one moment."""

    local: str
    remote: str
    state: str  # up, stalled, down
    rate: float = 0.0  # bytes/s out, on the wire
    rtt_ms: float = 0.0
    reason: str = ""  # why it is down


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskProgress:
    """One sample of copying disks: the sum over all that travel, files and mirrors. Bytes."""

    time_s: float  # since the operation began
    phase: Phase
    transferred: int = 0
    remaining: int = 0
    total: int = 0
    rate: float = 0.0  # bytes/s over the last samples
    disks: dict[str, float] = field(default_factory=dict)  # name -> share that is done, 0 to 1
    bytes_wire: int = 0
    # The carrier's; `wire` are bytes on the network with all headers.
    carrier: str = ""
    limit: int | None = None  # bytes/s on the wire
    is_limited: bool = False  # that is what holds it back now
    wire_rate: float = 0.0  # bytes/s
    link: str = ""  # up or down; empty: QEMU's own connection
    down_s: float = 0.0  # so long
    channels: tuple[ChannelProgress, ...] = ()
    ratio: float | None = None  # bytes on the wire for a byte of the guest's, so far
    pages: dict[str, int] = field(default_factory=dict)  # sent so far, by what became of them


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProgress:
    """One sample of a move's memory phase. Bytes are guest memory unless the name says wire."""

    time_s: float  # since the operation began
    phase: Phase
    transferred: int = 0  # bytes sent by QEMU
    remaining: int = 0
    total: int = 0
    rate: float = 0.0  # bytes/s over the last samples
    dirty_rate: float = 0.0  # bytes/s that the guest dirties
    rounds: int = 0
    expected_pause_ms: float | None = None
    bytes_wire: int = 0
    # The carrier's; `wire` are bytes on the network with all headers.
    carrier: str = ""
    limit: int | None = None  # bytes/s on the wire
    is_limited: bool = False  # that is what holds it back now
    wire_rate: float = 0.0  # bytes/s
    link: str = ""  # up or down; empty: QEMU's own connection
    down_s: float = 0.0  # so long
    channels: tuple[ChannelProgress, ...] = ()
    ratio: float | None = None  # bytes on the wire for a byte of the guest's, so far
    pages: dict[str, int] = field(default_factory=dict)  # sent so far, by what became of them
    allowed_pause_ms: float = 0.0  # the policy's, up to the user's maximum
    throttle: int = 0  # percent of its time that the guest is kept from running
    action: str = ""  # what the policy did last, and why
