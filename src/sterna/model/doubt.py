"""A handover whose outcome nobody knows: what is known of it, and the ways out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One safe way out of a doubt."""

    name: str  # wait | fence
    what: str
    loses: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """About one VM that was given away and of which its target says nothing."""

    operation: str
    vm: str
    vm_id: str
    target: str
    since: str  # the handover began
    epoch: int  # that was given away
    guest: str  # what is here of it: paused | off
    target_says: str  # the error of the last question
    others: tuple[str, ...]  # a sentence for each other host that was asked
    travelling: tuple[str, ...]  # disks with a copy of their own on the target
    blocker: str  # why it cannot be taken back now; empty: it can
    ways: tuple[Way, ...]
