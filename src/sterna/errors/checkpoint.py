"""Checkpoints and saved states."""

from __future__ import annotations

from sterna.errors.family import (
    Cancelled,
    Conflict,
    Corrupt,
    Failed,
    NotFound,
    Partial,
    Refused,
)


class CheckpointNotFound(NotFound):
    code = "checkpoint.not-found"
    text = "{vm} has no checkpoint called {checkpoint}"
    hint = "List them with: sterna vm checkpoint list {vm}"


class CheckpointExists(Conflict):
    code = "checkpoint.exists"
    text = "{vm} already has a checkpoint called {checkpoint}"
    hint = "Choose another name, or see: sterna vm checkpoint list {vm}"


class CheckpointRefused(Refused):
    code = "checkpoint.refused"
    text = "no checkpoint of {vm} can be made: {reason}"
    hint = "{fix}"


class CheckpointFailed(Failed):
    code = "checkpoint.failed"
    text = "the checkpoint {checkpoint} of {vm} was not made: {reason}"
    hint = "{fix}"


class CheckpointCancelled(Cancelled):
    code = "checkpoint.cancelled"
    text = "the checkpoint {checkpoint} of {vm} was cancelled and undone"


class CheckpointLeftovers(Partial):
    code = "checkpoint.leftovers"
    text = "{outcome}, but something was left behind: {leftovers}"
    hint = "{fix}"


class CheckpointWithoutMemory(Partial):
    code = "checkpoint.without-memory"
    text = "the checkpoint {checkpoint} of {vm} has its disks only: {reason}"
    hint = "Keep it, or delete it with: sterna vm checkpoint delete {vm} {checkpoint}"


class CheckpointDamaged(Corrupt):
    code = "checkpoint.damaged"
    text = "the memory of checkpoint {checkpoint} of {vm} is damaged: {path}: {reason}"
    hint = (
        "Go back to its disks alone with: sterna vm checkpoint apply {vm} {checkpoint} --no-memory"
    )


class ApplyFailed(Failed):
    code = "checkpoint.not-applied"
    text = "the checkpoint {checkpoint} of {vm} was not applied, {outcome}: {reason}"
    hint = "{fix}"


class ApplyCancelled(Cancelled):
    code = "checkpoint.apply-cancelled"
    text = "applying the checkpoint {checkpoint} of {vm} was cancelled; {outcome}"


class AppliedButOff(Partial):
    code = "checkpoint.applied-but-off"
    text = "{vm} is at checkpoint {checkpoint}, but is off: {reason}"
    hint = "Start it from there: sterna vm restore {vm}; or boot its disks: sterna vm discard {vm}"


class NotMerged(Partial):
    """Deleted for its user; its images are still there, and are merged when it is asked again."""

    code = "checkpoint.not-merged"
    text = "{checkpoint} of {vm} is deleted, but its images are not merged yet: {reason}"
    hint = "Merge them with: sterna vm checkpoint delete {vm} {checkpoint}"


class MergeCancelled(Cancelled):
    code = "checkpoint.merge-cancelled"
    text = "{checkpoint} of {vm} is deleted; merging its images was cancelled, {vm} is as before"
    hint = "Merge them later with: sterna vm checkpoint delete {vm} {checkpoint}"


class SaveFailed(Failed):
    code = "saved.failed"
    text = "{vm} was not saved and goes on: {reason}"
    hint = "{fix}"


class SaveCancelled(Cancelled):
    code = "saved.cancelled"
    text = "saving {vm} was cancelled; it goes on"


class NotSaved(Conflict):
    code = "saved.none"
    text = "{vm} has no saved state"
    hint = "See: sterna vm show {vm}"


class SavedStateDamaged(Corrupt):
    code = "saved.damaged"
    text = "the saved state of {vm} is damaged: {path}: {reason}"
    hint = "Throw it away, then {vm} boots: sterna vm discard {vm}"


class SavedStateForeign(Refused):
    code = "saved.accel"
    text = "{what} of {vm} was made under {made}, and {host} runs guests under {here}"
    hint = "Use a host that offers {made}; {fix}"


class RestoreFailed(Failed):
    code = "saved.not-restored"
    text = "{vm} could not go on from its saved state and is off, still saved: {reason}"
    hint = "Try again, or throw the state away with: sterna vm discard {vm}"


class NoPoolForMemory(Refused):
    code = "checkpoint.no-pool"
    text = "{vm} has no disk, and {host} has no pool to put its memory in: {reason}"
    hint = "Make one called default with: sterna pool create default --path DIR"
