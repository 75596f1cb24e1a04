"""The steps that take a move back, registered before the effects that they undo."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from sterna.operations.runner import Job
from sterna.tasks import finish


class Undo:
    """Async context: an error inside runs all registered steps in reverse, each of them whatever
    happens to the others, and even if the caller is cancelled again. What failed is in
    `leftovers`, in words. `dismiss` makes them void once the effects are to stay.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self.leftovers: list[str] = []

    def push(self, what: str, step: Callable[[], Awaitable[object]]) -> None:
        """`what` completes the sentence "could not …"."""
        self._steps.append((what, step))

    def dismiss(self) -> None:
        """The effects stay."""
        self._steps.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            await finish(self._run())

    async def _run(self) -> None:
        while self._steps:
            what, step = self._steps.pop()
            try:
                await step()
            except Exception as error:  # noqa: BLE001 - every other step must still run
                self._job.log(f"could not {what}: {error}", level="warning")
                self.leftovers.append(f"could not {what}: {error}")
