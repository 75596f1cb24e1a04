"""Moves of several VMs as one operation: what is wished for, what is planned, what became of each.

No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from sterna.model.check import Check, Outcome
from sterna.model.disk import STRICT
from sterna.model.move import MoveWishes
from sterna.model.vm import RunState

ANY = "*"  # for a target that is not chosen yet


@dataclass(frozen=True, slots=True, kw_only=True)
class SeveralWishes:
    """Body of POST /v1/moves: these VMs, all with the same wishes, to one target."""

    __pydantic_config__ = STRICT

    vms: tuple[str, ...]  # names or ids, in the order in which they shall go
    wishes: MoveWishes

    def __post_init__(self) -> None:
        if not self.vms:
            raise ValueError("vms is empty; name at least one VM")
        if twice := sorted({vm for vm in self.vms if self.vms.count(vm) > 1}):
            raise ValueError(f"vms names {', '.join(twice)} more than once")
        if self.wishes.approved is not None:
            raise ValueError("a plan is of one VM; leave wishes.approved out")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWishes:
    """Body of POST /v1/host/drain. `to`: hosts that may take VMs; empty: all that it knows.

    `keep_off`: VMs that are off stay here. `wishes`: of each move; its target is chosen anyhow.
    """

    __pydantic_config__ = STRICT

    to: tuple[str, ...] = ()
    keep_off: bool = False
    wishes: MoveWishes = field(default_factory=lambda: MoveWishes(target=ANY))

    def __post_init__(self) -> None:
        if self.wishes.approved is not None:
            raise ValueError("a plan is of one VM; leave wishes.approved out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeWishes:
    """Body of POST /v1/host/resume. Without `fail_back` what has left stays where it is, for good."""

    __pydantic_config__ = STRICT

    fail_back: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What is meant to become of one VM. An empty `target`: it stays, for `reason`."""

    vm: str
    vm_id: str
    state: RunState
    memory: int  # bytes that it takes at its target: none if it is off
    priority: int
    target: str = ""
    outcome: Outcome = Outcome.WELL
    findings: tuple[Check, ...] = ()  # about the move to `target`
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeveralPlan:
    """What would be done, in the order in which it would be. Nothing has happened."""

    source: str
    made: str  # RFC 3339
    vms: tuple[Planned, ...]
    notes: tuple[str, ...] = ()  # what is worth to know of it as a whole


class PartState(StrEnum):
    """What has become of one VM so far."""

    WAITING = "waiting"  # not begun
    RUNNING = "running"
    UNKNOWN = "unknown"  # whether its target has it: that is being asked
    MOVED = "moved"
    LEFTOVERS = "leftovers"  # moved, and something was left behind
    REFUSED = "refused"  # by checks: nothing happened
    FAILED = "failed"  # undone
    CANCELLED = "cancelled"  # undone, or never begun
    SKIPPED = "skipped"  # there was nothing to do

    @property
    def is_final(self) -> bool:
        return self not in (PartState.WAITING, PartState.RUNNING, PartState.UNKNOWN)

    @property
    def has_moved(self) -> bool:
        return self in (PartState.MOVED, PartState.LEFTOVERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One VM of an operation about several; `operation` is its own move, on `source`."""

    vm: str
    vm_id: str
    source: str
    target: str = ""
    state: PartState = PartState.WAITING
    operation: str = ""
    reason: str = ""  # why it has not moved, or what is worth to know
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """A VM that a drain has sent away, or was about to: `resume` asks `target` for it."""

    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    vm: str
    vm_id: str
    target: str
    since: str  # RFC 3339


def counted(parts: Sequence[Part]) -> tuple[int, int]:
    """How many have moved, and how many were to."""
    meant = [one for one in parts if one.state is not PartState.SKIPPED]
    return sum(one.state.has_moved for one in meant), len(meant)
