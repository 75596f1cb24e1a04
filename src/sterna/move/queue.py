"""The turn of one operation, as its user sees it wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sterna.errors import MoveCancelled
from sterna.move.slots import Slots, Turn
from sterna.operations.runner import Job


@contextlib.asynccontextmanager
async def in_turn(slots: Slots, job: Job, vm: str, target: str) -> AsyncIterator[Turn]:
    """A slot until the block ends; if the move has to wait for it, it tells so."""
    job.phase = "wait"

    said = ""

    def say(text: str) -> None:
        nonlocal said
        if text == said:
            return
        said = text
        job.sample({"waits": text})
        job.log(text)

    is_begun = False
    try:
        async with slots.turn(say) as turn:
            is_begun = True
            yield turn
    except asyncio.CancelledError as error:
        if is_begun or job.stopped_by != "user":
            raise
        raise MoveCancelled(vm=vm, target=target, phase=job.phase) from error
