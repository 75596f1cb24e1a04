"""What is found before anything happens: one finding, and what a move was approved with. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from sterna.model.move import MoveWishes, StorageWishes


class Severity(StrEnum):
    """What a finding means for the one who wants to go on."""

    BLOCKER = "blocker"  # it would fail, or hurt: not begun
    WARNING = "warning"  # it would work, and something is worth to know or mend first
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One preflight finding with the actual values of both sides, and its fix.

    `command` is the fix as one complete command line, if it can be had as one: nothing in it is
    left to fill in. `is_safe`: it changes no guest and destroys nothing, so `--fix` may run it.
    """

    id: str  # stable: "network.switch-missing"
    severity: Severity
    finding: str
    fix: str = ""  # for people; names the command
    command: str = ""
    is_safe: bool = False


class Outcome(StrEnum):
    """The worst of all findings."""

    WELL = "well"
    WARNED = "warned"
    BLOCKED = "blocked"


def outcome(found: Iterable[Check]) -> Outcome:
    """What all of `found` come to."""
    severities = {one.severity for one in found}
    if Severity.BLOCKER in severities:
        return Outcome.BLOCKED
    return Outcome.WARNED if Severity.WARNING in severities else Outcome.WELL


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one disk is, and where it will be."""

    disk: str
    pool: str
    to: str  # pool of the target
    travels: bool  # False: both hosts share the pool
    size: int  # bytes to copy, about


WayState = Literal["open", "blocked", "unreachable", "absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A connection that was tried to one address where the target receives moves.

    blocked: its host answers, the port does not. absent: its host itself lacks that address.
    """

    address: str
    port: int
    state: WayState
    local: str = ""  # our end, if it is open
    rtt_ms: float | None = None
    reason: str = ""  # why it is not open


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierForecast:
    """What a move by one carrier would be like. None: its rounds would not end."""

    kind: str  # direct or compression
    total_s: float | None
    pause_ms: float | None
    bytes_wire: int | None
    # Of rounds that would not end: what would let them, either of these.
    needs_pause_ms: float | None = None
    needs_rate: int | None = None  # bytes/s of the link; None: no link helps


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageReport:
    """All that a check of disks that stay on their host says, as `MoveReport` does of a move.

    The JSON of `POST /v1/vms/{vm}/storage-moves:check`.
    """

    version: int = 1
    vm: str
    vm_id: str
    source: str  # their host
    made: str  # RFC 3339
    outcome: Outcome
    wishes: StorageWishes
    findings: tuple[Check, ...]
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """All that a check of a move says. The JSON of `POST /v1/vms/{vm}/moves:check`.

    It is a plan, too: `wishes` may be edited and checked again, and a move with `facts` and the ids
    of `findings` as its `approved` is done exactly so or refused.
    """

    version: int = 1
    vm: str
    vm_id: str
    source: str
    target: str
    made: str  # RFC 3339
    outcome: Outcome
    wishes: MoveWishes
    findings: tuple[Check, ...]
    facts: dict[str, str] = field(default_factory=dict)  # what the plan rests on
    places: tuple[Place, ...] = ()
    carrier: str = ""  # of a VM that runs
    carrier_reason: str = ""
    forecasts: tuple[CarrierForecast, ...] = ()  # of each carrier
    rate: float | None = None  # bytes/s that the migration network carries now, as measured
    ways: tuple[Way, ...] = ()  # that were tried there
