"""An operation: a long-running action as a resource. Frozen snapshots, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class OperationState(StrEnum):
    """Ends in one of the last five. `UNKNOWN` is not an end: it waits for the other side."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    WARNED = "warned"  # done, with warnings
    FAILED = "failed"  # undone
    CANCELLED = "cancelled"  # undone
    PARTIAL = "partial"  # something was left behind

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL = frozenset(
    {
        OperationState.SUCCEEDED,
        OperationState.WARNED,
        OperationState.FAILED,
        OperationState.CANCELLED,
        OperationState.PARTIAL,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step, told in one sentence when it ended. Times are RFC 3339, `seconds` monotonic."""

    name: str
    state: str  # running | done | failed | undone
    began: str
    seconds: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    number: int  # 1, 2, 3 … within the operation
    time: str
    level: str  # info | warning | error
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`progress` is the newest sample; `result` the report of a success; `error` a problem body."""

    id: str
    kind: str  # move | receive | stop | moves | drain
    vm: str  # name; empty: it is about several
    vm_id: str
    state: OperationState
    phase: str = ""
    created: str = ""
    ended: str = ""
    peer: str = ""  # the other host of a move
    parent: str = ""  # operation that this one is a part of
    by: str = ""  # who began it, such as local:root; empty: the daemon itself
    cancellable: bool = True
    steps: tuple[Step, ...] = ()
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
