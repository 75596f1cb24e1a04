"""Moves, ownership, and the records that they rest on."""

from __future__ import annotations

from sterna.errors.family import (
    Cancelled,
    Conflict,
    Corrupt,
    Failed,
    NotFound,
    Partial,
    Refused,
    Unknown,
)


class MoveRefused(Refused):
    """Checks found blockers; `findings` holds each check's id, finding and fix."""

    code = "move.refused"
    text = "{vm} cannot move to {target}: {summary}"
    hint = "{fix}"


class InboundDisabled(Refused):
    code = "move.inbound-disabled"
    text = "{host} takes no VMs: its inbound moves are off"
    hint = "Turn them on: sterna --host {host} host set --inbound on"


class TargetBusy(Conflict):
    """The target has as many moves as it takes at a time; who asks again keeps its place."""

    code = "move.target-busy"
    text = "{waits}"
    hint = "It takes the VM when one of them has ended"


class PlanOutdated(Refused):
    """`changes` holds what is not as it was approved, a phrase each."""

    code = "move.plan-outdated"
    text = "{vm} does not move as planned, because things have changed: {summary}"
    hint = "Look at the change, then check again: sterna check {vm} {target} -o json"


class MoveFailed(Failed):
    code = "move.failed"
    text = "the move of {vm} to {target} failed in phase {phase} and was undone: {reason}"
    hint = "{fix}"


class MoveCancelled(Cancelled):
    code = "move.cancelled"
    text = "the move of {vm} to {target} was cancelled in phase {phase} and undone"


class MoveLeftovers(Partial):
    code = "move.leftovers"
    text = "{vm} {outcome}, but something was left behind: {leftovers}"
    hint = "{fix}"


class MoveUnknown(Unknown):
    code = "move.unknown"
    text = "{vm} is paused: {target} was told to take it over and does not answer"
    hint = (
        "Bring {target} back: the move then ends by itself. If that cannot be, see: "
        "sterna op resolve {operation}"
    )


class EncryptionRequired(Refused):
    code = "move.encryption-required"
    text = "{source} would send {vm} unencrypted, and {host} does not take that"
    hint = "Encrypt on {source}: sterna host set --encryption required"


class Stalled(Failed):
    code = "move.stalled"
    text = "{reason}"


class NotConverging(Stalled):
    """The convergence policy has come to the end of its ladder."""

    code = "move.not-converging"
    text = "the guest changes its memory faster than it travels ({reason})"
    hint = "Allow a longer pause (--max-downtime), choose another --on-stall, or move it when it does less"


class MemoryLost(Partial):
    """Post-copy broke for good. The VM is off on its target; its disks are whole."""

    code = "move.memory-lost"
    text = "memory of {vm} was lost on its way to {target} ({reason}); it is off there, with whole disks"
    hint = "Boot it on the host that owns it: sterna vm start {vm}"


class HandoverFailed(Failed):
    """The handover ended with the VM still owned by its source."""

    code = "move.handover-failed"
    text = "{reason}"


class Fenced(HandoverFailed):
    """The handover ended because a human declared that the target is off."""

    code = "move.fenced"
    text = (
        "{vm} was taken back from {target} in epoch {epoch}, because somebody declared that "
        "{target} is off; what it may have done there since is lost. It {state}"
    )


class NotInDoubt(Conflict):
    code = "op.not-in-doubt"
    text = "operation {operation} is not in doubt: {state}"
    hint = "See: sterna op show {operation}"


class FenceRefused(Conflict):
    """Taking the VM back might make a second owner."""

    code = "op.fence-refused"
    text = "{vm} is not taken back: {reason}"
    hint = "{fix}"


class TargetLost(Failed):
    code = "move.target-lost"
    text = "{target} gave the move up: {reason}"


class ReservationNotFound(NotFound):
    code = "move.no-reservation"
    text = "{host} holds no reservation {operation}"


class StateNotWritten(Failed):
    code = "state.not-written"
    text = "could not write {path}: {reason}"
    hint = "Free space on that file system, or mend it, and try again"


class RecordDamaged(Corrupt):
    code = "state.damaged"
    text = "the record of {what} {name} on {host} is damaged and was set aside at {path}: {reason}"
    hint = "Mend the file and rename it back, or delete it, then restart sternad"


class JournalCorrupt(Corrupt):
    code = "journal.corrupt"
    text = "the journal of operations was damaged and set aside at {path}: {reason}"
    hint = "VMs are not affected; the history of operations starts anew"


class StorageMoveRefused(Refused):
    """Checks found blockers; `findings` holds each check's id, finding and fix."""

    code = "storage.refused"
    text = "the disks of {vm} cannot move: {summary}"
    hint = "{fix}"


class StorageMoveFailed(Failed):
    code = "storage.failed"
    text = "moving the disks of {vm} failed in phase {phase} and was undone: {reason}"
    hint = "{fix}"


class StorageMoveCancelled(Cancelled):
    code = "storage.cancelled"
    text = "moving the disks of {vm} was cancelled in phase {phase} and undone"


class StorageMoveLeftovers(Partial):
    code = "storage.leftovers"
    text = "the disks of {vm} {outcome}, but something was left behind: {leftovers}"
    hint = "{fix}"
