"""Work that must not be torn apart by a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if the caller is cancelled meanwhile.

    For an undo that has begun. The cancellation is not lost: it
    is raised when `work` has ended, unless `work` succeeded, which is then the answer.
    """
    task = asyncio.get_running_loop().create_task(work)
    caller = asyncio.current_task()
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done() and task.cancelled():
                raise
            cancelled = error
            if caller is not None:
                caller.uncancel()
        except BaseException:  # noqa: BLE001 - the task's own outcome is read below
            break
    if cancelled is not None and task.exception() is not None:
        raise cancelled
    return task.result()
