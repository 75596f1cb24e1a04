"""What the work of one operation sees (`Job`), and the one owner of its state (`Live`).

Promises: every change becomes a numbered event, in order, for whoever follows, and a row of the
journal, without waiting for either. Whatever the journal's disk does, the work goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

from sterna import clock
from sterna.errors import SternaError
from sterna.model.operation import LogLine, Operation, OperationState, Step
from sterna.operations import plain
from sterna.operations.hub import Event, Hub, Subscribers
from sterna.operations.journal import Journal

log = logging.getLogger(__name__)

LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
Stop = Literal["", "user", "shutdown"]
Adjust = Callable[[Any], Awaitable[None]]  # takes new wishes, of a type that its kind knows


class Live:
    """One operation under way. Only the loop's thread touches it."""

    def __init__(self, operation: Operation, journal: Journal, hub: Hub) -> None:
        self.operation = operation
        self.event = 0  # number of the newest event
        self.line = 0
        self.samples = 0
        self.task: asyncio.Task[dict[str, Any]] | None = None
        self.subscribers = Subscribers()
        self.ended = asyncio.Event()  # final, or left for the next start
        self.stop: Stop = ""  # why its work has been cancelled
        self.shields = 0  # how many uncancellable() it is in
        self.settled = False  # how its work ended has been written
        self.closing = False  # cancel as soon as the shields are down
        self.cancellable = operation.cancellable
        self.warnings: list[str] = []
        self.adjust: Adjust | None = None  # while its wishes may change
        self.began = clock.monotonic()
        self._journal = journal
        self._hub = hub

    def change(self, *, durable: bool = False, **fields: Any) -> None:
        """The next snapshot: kept, and told to everybody."""
        self.operation = replace(self.operation, **fields)
        self.event += 1
        body = plain.text(self.operation)
        self._journal.save(self.operation, self.event, body, durable=durable)
        self.subscribers.send(Event(self.event, "state", body))
        self._hub.publish("operation", body)

    def say(self, text: str, level: str) -> None:
        self.event += 1
        self.line += 1
        text = plain.clean(text)
        line = LogLine(number=self.line, time=clock.now(), level=level, text=text)
        body = plain.text(line)
        self._journal.add_line(self.operation.id, self.event, self.line, body)
        self.subscribers.send(Event(self.event, "log", body))
        one = self.operation
        log.log(LEVELS.get(level, logging.INFO), "%s %s of %s: %s", one.id, one.kind, one.vm, text)

    def sample(self, values: Any) -> None:
        body = plain.text(values)
        self.operation = replace(self.operation, progress=json.loads(body))
        self.event += 1
        self._journal.add_sample(self.operation.id, self.event, body)
        self.subscribers.send(Event(self.event, "progress", body))
        self.samples += 1
        if self.samples > self._journal.limits.samples:
            self._journal.thin(self.operation.id)
            self.samples //= 2

    def set_step(self, index: int, step: Step) -> None:
        steps = self.operation.steps
        self.change(steps=(*steps[:index], step, *steps[index + 1 :]))


class Told:
    """A step under way: `say` how it ended."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.text = ""
        self.state = "done"

    def say(self, text: str) -> None:
        """The sentence that the step ends with; the last one counts."""
        self.text = text

    def failed(self, text: str) -> None:
        """It has failed, and what it is a part of goes on."""
        self.text, self.state = text, "failed"

    def undone(self, text: str) -> None:
        """It ended by taking back what it did."""
        self.text, self.state = text, "undone"


class Job:
    """Handed to the work of an operation. All of it is for that work's tasks only."""

    def __init__(self, live: Live) -> None:
        self._live = live

    @property
    def id(self) -> str:
        return self._live.operation.id

    @property
    def operation(self) -> Operation:
        """The snapshot of now."""
        return self._live.operation

    @property
    def elapsed(self) -> float:
        """Seconds since this daemon began to work on it."""
        return clock.monotonic() - self._live.began

    @property
    def stopped_by(self) -> Stop:
        """Why a CancelledError came: a user's cancel (undo everything), or the daemon's shutdown
        (touch nothing that the next start can go on with). Empty: nobody asked to stop.
        """
        return self._live.stop

    @property
    def phase(self) -> str:
        return self._live.operation.phase

    @phase.setter
    def phase(self, name: str) -> None:
        if name != self._live.operation.phase:
            self._live.change(phase=str(name))

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[Told]:
        """One step with its time, its sentence and its end: done, failed, or `undone`."""
        live, index = self._live, len(self._live.operation.steps)
        began = clock.monotonic()
        step = Step(name=name, state="running", began=clock.now())
        told = Told(step)
        live.set_step(index, step)
        try:
            yield told
        except BaseException as error:
            told.state, told.text = "failed", self._why(error)
            raise
        finally:
            seconds = round(clock.monotonic() - began, 6)
            live.set_step(
                index, replace(step, state=told.state, seconds=seconds, text=plain.clean(told.text))
            )
            if told.text:
                failed = told.state == "failed" and not live.stop
                live.say(f"{name}: {told.text}", "error" if failed else "info")

    def _why(self, error: BaseException) -> str:
        if isinstance(error, asyncio.CancelledError):
            match self._live.stop:
                case "user":
                    return "cancelled"
                case "shutdown":
                    return "interrupted: sternad is stopping"
            return "stopped by another failure"
        if isinstance(error, BaseExceptionGroup):
            return self._why(error.exceptions[0])
        if isinstance(error, SternaError):
            return error.message
        return f"{type(error).__name__}: {error}"

    def log(self, text: str, level: str = "info") -> None:
        """One line for the diary of this operation, and of the daemon."""
        self._live.say(text, level)

    def warn(self, text: str) -> None:
        """Like `log`; the operation can then end only as `warned`, not `succeeded`."""
        self._live.warnings.append(text)
        self._live.say(text, "warning")

    def report(self, values: dict[str, Any]) -> None:
        """What is known of its result already: it stays, unless the work returns another."""
        self._live.change(result=plain.data(values))

    def sample(self, values: Any) -> None:
        """The progress of now: a dict of JSON types, or a dataclass of the model."""
        self._live.sample(values)

    @contextlib.contextmanager
    def uncancellable(self) -> Iterator[None]:
        """Inside, a user's cancel is refused as too late, and a shutdown waits a few seconds.

        A cancel that came before has been delivered by then, at the await before this one; work that
        swallows CancelledError must look at `stopped_by` first.
        """
        live = self._live
        live.shields += 1
        if live.shields == 1 and live.operation.cancellable:
            live.change(cancellable=False)
        try:
            yield
        finally:
            live.shields -= 1
            if live.shields == 0:
                if live.cancellable and not live.operation.cancellable:
                    live.change(cancellable=True)
                if live.closing and not live.stop and live.task:
                    live.stop = "shutdown"
                    live.task.cancel()

    @contextlib.contextmanager
    def adjustable(self, adjust: Adjust) -> Iterator[None]:
        """Inside, `adjust` is called with each change of wishes that a user asks for."""
        self._live.adjust = adjust
        try:
            yield
        finally:
            self._live.adjust = None

    def unknown(self, error: SternaError) -> None:
        """The outcome cannot be known for now; the work goes on to find out."""
        self._live.change(
            durable=True, state=OperationState.UNKNOWN, error=plain.data(error.problem())
        )
        self._live.say(error.message, "warning")

    def known(self) -> None:
        """It is known again; how the work ends says what it is."""
        if self._live.operation.state is OperationState.UNKNOWN:
            cancelling = self._live.stop == "user"
            state = OperationState.CANCELLING if cancelling else OperationState.RUNNING
            self._live.change(state=state, error={})
