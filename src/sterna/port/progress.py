"""How far the files of an export or import are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sterna.model.move import DiskProgress, Phase
from sterna.operations.runner import Job

SAMPLE_S = 0.25


class Progress:
    """Bytes of all files together, holes included."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._done = 0
        self._total = 0

    def add(self, length: int) -> None:
        """So many bytes more, from whichever thread works."""
        self._done += length

    @contextlib.asynccontextmanager
    async def shown(self, total: int) -> AsyncIterator[None]:
        """A sample several times a second while the block lasts."""
        self._done, self._total = 0, total
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._sampling())
            try:
                yield
            finally:
                task.cancel()
        self._sample(0.0)

    async def _sampling(self) -> None:
        before = self._done
        while True:
            await asyncio.sleep(SAMPLE_S)
            self._sample((self._done - before) / SAMPLE_S)
            before = self._done

    def _sample(self, rate: float) -> None:
        done = min(self._done, self._total)
        self._job.sample(
            DiskProgress(
                time_s=round(self._job.elapsed, 3),
                phase=Phase.DISKS,
                transferred=done,
                remaining=self._total - done,
                total=self._total,
                rate=round(rate),
            )
        )
