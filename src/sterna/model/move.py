"""A move: what is wished for, what was found, what was decided, what happened. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sterna.model.disk import STRICT
from sterna.model.vm import Size

DEFAULT_MAX_DOWNTIME_MS = 300  # a pause that few protocols and no person notices


class Phase(StrEnum):
    """DESIGN section 5. The order here is the order of a move."""

    PLAN = "plan"
    RESERVE = "reserve"
    DISKS = "disks"
    MEMORY = "memory"
    HANDOVER = "handover"
    TIDY = "tidy"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveWishes:
    """What the user asks for, beyond VM and target. The body of POST /v1/vms/{vm}/moves."""

    __pydantic_config__ = STRICT

    target: str
    max_downtime_ms: int = DEFAULT_MAX_DOWNTIME_MS
    bandwidth: Size | None = None  # bytes/s; None: as fast as the network goes
    deadline_s: float | None = None  # give up and undo after that long; None: no limit

    def __post_init__(self) -> None:
        if not 1 <= self.max_downtime_ms <= 2_000_000:  # QEMU's own limit
            raise ValueError(
                f"max_downtime_ms is {self.max_downtime_ms}; it must be between 1 and 2000000"
            )
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise ValueError(f"deadline_s is {self.deadline_s}; it must be more than zero")


class Severity(StrEnum):
    BLOCKER = "blocker"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One preflight finding with the actual values of both sides, and its fix."""

    id: str  # stable: "network.switch-missing"
    severity: Severity
    finding: str
    fix: str = ""


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
