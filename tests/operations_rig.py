"""What the tests of operations and of the API share: a loop with a deadline, a real runner."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from sterna.operations.hub import Event
from sterna.operations.journal import Journal
from sterna.operations.runner import Runner

DEADLINE_S = 30


def in_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """Run an async test in a loop of its own, within a deadline, without a task left behind."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def whole() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await test(*args, **kwargs)
            assert asyncio.all_tasks() == {asyncio.current_task()}, "tasks were left behind"

        asyncio.run(whole())

    return run


@contextlib.asynccontextmanager
async def a_runner(folder: Path, **kwargs: Any) -> AsyncIterator[Runner]:
    journal = Journal(folder / "journal.db", **kwargs)
    runner = Runner(journal, "alpha")
    try:
        yield runner
    finally:
        await runner.close()
        await journal.close()


async def read(runner: Runner, operation: str, after: int = 0) -> list[Event]:
    async with contextlib.aclosing(runner.subscribe(operation, after)) as events:
        return [event async for event in events]


def texts(events: list[Event]) -> list[str]:
    return [json.loads(event.data)["text"] for event in events if event.kind == "log"]
