"""Operations, and the daemon that runs them."""

from __future__ import annotations

from sterna.errors.family import Cancelled, Conflict, Failed, NotFound, Unreachable


class OperationNotFound(NotFound):
    code = "operation.not-found"
    text = "there is no operation {operation} on {host}"
    hint = "List them with: sterna op list"


class OperationEnded(Conflict):
    code = "operation.ended"
    text = "operation {operation} has already ended: {state}"
    hint = "See: sterna op show {operation}"


class TooLateToCancel(Conflict):
    code = "operation.too-late"
    text = "operation {operation} is in its handover and ends within seconds"
    hint = "Wait for it with: sterna op wait {operation}"


class ListenFailed(Failed):
    code = "daemon.cannot-listen"
    text = "cannot listen on {where}: {reason}"
    hint = "{fix}"


class OperationExists(Conflict):
    code = "operation.exists"
    text = "{host} already has an operation {operation}"
    hint = "See: sterna op show {operation}"


class OperationCancelled(Cancelled):
    code = "operation.cancelled"
    text = "operation {operation} was cancelled and undone"


class NotCancellable(Conflict):
    code = "operation.not-cancellable"
    text = "operation {operation} ({kind}) cannot be cancelled"
    hint = "Wait for it with: sterna op wait {operation}"


class NotAdjustable(Conflict):
    code = "operation.not-adjustable"
    text = "operation {operation} ({kind}) has nothing that can be changed now"
    hint = "Limits can be changed of a move to another host, until its handover"


class Stopping(Unreachable):
    """The daemon is on its way down and begins nothing new."""

    code = "daemon.stopping"
    text = "sternad on {host} is stopping and begins no new work"
    hint = "Ask again when it has started: systemctl status sternad"
    status = 503
