"""Moves of several VMs, and hosts that are emptied."""

from __future__ import annotations

from sterna.errors.family import Cancelled, Conflict, Failed, Partial, Refused, Unknown


class SomeStayed(Partial):
    """A part of the VMs has moved; `vms` of the operation's result tells of each."""

    code = "moves.some-stayed"
    text = "{done} of {total} VMs moved; {stayed}"
    hint = "{fix}"


class NoneMoved(Failed):
    code = "moves.none-moved"
    text = "none of {total} VMs moved; {stayed}"
    hint = "{fix}"


class AllRefused(Refused):
    """Checks found a blocker for each of the VMs."""

    code = "moves.all-refused"
    text = "none of {total} VMs can move; {stayed}"
    hint = "{fix}"


class SeveralCancelled(Cancelled):
    code = "moves.cancelled"
    text = "cancelled: {done} of {total} VMs had moved and stay there, the others are as before"
    hint = "{fix}"


class SomeUnknown(Unknown):
    """All that is left of several moves is in doubt."""

    code = "moves.unknown"
    text = "whether {names} moved is not known: the target was told to take over and is silent"
    hint = "Bring the target back: it ends by itself then; or see: sterna op resolve {operation}"


class HostDraining(Refused):
    code = "host.draining"
    text = "{host} is being emptied (drained) and {what}"
    hint = "When its maintenance is over, on {host}: sterna host resume"


class DrainUnderWay(Conflict):
    code = "host.drain-under-way"
    text = "{kind} of {host} is under way already"
    hint = "Follow it with: sterna op wait {operation}"
