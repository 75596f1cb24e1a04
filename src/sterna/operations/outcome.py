"""How the end of an operation's work becomes the end of the operation. No I/O but the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from sterna import clock
from sterna.errors import Cancelled, OperationCancelled, Partial, SternaError, Unknown
from sterna.model.operation import OperationState
from sterna.operations import plain
from sterna.operations.job import Live

log = logging.getLogger(__name__)


def outcome(live: Live, task: asyncio.Task[dict[str, Any]]) -> dict[str, Any] | None:
    """Fields of the last snapshot; None to leave the operation unfinished for the next start."""
    if task.cancelled():
        return _cancelled(live)
    raised = task.exception()
    if raised is None:
        return _returned(live, task.result())
    error = _chosen(raised, live.operation.id)
    match error:
        case Unknown():
            return {"state": OperationState.UNKNOWN, "error": plain.data(error.problem())}
        case Partial():
            state = OperationState.PARTIAL
        case Cancelled():
            state = OperationState.CANCELLED
        case _:
            state = OperationState.FAILED
    return _ended(state, error)


def _cancelled(live: Live) -> dict[str, Any] | None:
    match live.stop:
        case "shutdown":
            return None
        case "user":
            error: SternaError = OperationCancelled(operation=live.operation.id)
            return _ended(OperationState.CANCELLED, error)
    log.error("operation %s was cancelled by itself", live.operation.id)
    return _ended(OperationState.FAILED, SternaError(detail="its work cancelled itself"))


def _returned(live: Live, result: dict[str, Any] | None) -> dict[str, Any]:
    report: dict[str, Any] = plain.data(result or {})
    warnings = [*report.get("warnings", ()), *live.warnings]
    if warnings:
        report["warnings"] = list(dict.fromkeys(warnings))
    state = OperationState.WARNED if warnings else OperationState.SUCCEEDED
    return {"state": state, "ended": clock.now(), "result": report, "error": {}}


def _ended(state: OperationState, error: SternaError) -> dict[str, Any]:
    return {"state": state, "ended": clock.now(), "error": plain.data(error.problem())}


def _chosen(raised: BaseException, operation: str) -> SternaError:
    """The error to tell: of a group the one that says most about what is left to do."""
    known = [error for error in _leaves(raised) if isinstance(error, SternaError)]
    for family in (Unknown, Partial):
        for error in known:
            if isinstance(error, family):
                return error
    if isinstance(raised, SternaError) or (known and len(known) == len(list(_leaves(raised)))):
        return known[0]
    log.error("operation %s failed unexpectedly", operation, exc_info=raised)
    if known:
        return known[0]
    first = next(_leaves(raised))
    return SternaError(detail=f"unexpected {type(first).__name__}: {first}")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
