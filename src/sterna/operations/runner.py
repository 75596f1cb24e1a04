"""Runs operations and everything else that outlives one request: the only place with tasks.

Promises: an operation ends exactly once, as its work says: returned -> succeeded (or warned),
Cancelled or a user's cancel -> cancelled, Partial -> partial, another SternaError -> failed; anything
unexpected -> failed with code "internal" and a traceback in the log. An operation is in the journal
before its work begins (or the disk was given a chance of WRITE_S). A second cancel never disturbs the
undo of the first. `close` leaves unfinished operations unfinished, for the next start to `resume`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from sterna import actor, clock
from sterna.errors import (
    NotAdjustable,
    NotCancellable,
    OperationEnded,
    OperationExists,
    OperationNotFound,
    Stopping,
    TooLateToCancel,
)
from sterna.model.operation import Operation, OperationState, Step
from sterna.operations import plain
from sterna.operations.hub import Event, Hub
from sterna.operations.job import Job, Live
from sterna.operations.journal import Journal
from sterna.operations.outcome import outcome
from sterna.operations.tables import Unfinished

__all__ = ["Job", "Runner"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Job], Awaitable[dict[str, Any]]]

WRITE_S = 2.0  # longest wait for the journal before work begins: a healthy disk takes ms
HANDOVER_S = 10.0  # a handover that a shutdown finds under way may end: it takes far less
BACKGROUND_S = 5.0  # watches only hang up
UNDO_S = 15.0  # and undo may take this long; systemd kills after 90 s
ENDED_KEPT = 100  # ended operations in memory: for those who ask at once, and for a full disk
EVENT_GAP = 1_000_000  # between the numbers of two lives: more than a crash can lose unwritten


class Ended(NamedTuple):
    """The last snapshot of an operation, and the number of the event that told it."""

    operation: Operation
    event: int


class Runner:
    """One for a daemon. `host` is its name, for errors. Use it from one event loop."""

    def __init__(self, journal: Journal, host: str = "this host") -> None:
        self.journal = journal
        self.hub = Hub()
        self._host = host
        self._live: dict[str, Live] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._found: dict[str, Unfinished] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False

    # ---- begin --------------------------------------------------------------------------------

    def start(  # noqa: PLR0913 - each names a part of the resource that it makes
        self,
        kind: str,
        *,
        work: Work,
        vm: str = "",
        vm_id: str = "",
        peer: str = "",
        parent: str = "",
        id: str | None = None,  # noqa: A002 - the resource's own word
        cancellable: bool = True,
    ) -> Operation:
        """Begin `work` and return at once. Raises Stopping, or OperationExists for a used `id`."""
        operation = Operation(
            id=id or str(uuid.uuid4()),
            kind=kind,
            vm=vm,
            vm_id=vm_id,
            state=OperationState.QUEUED,
            created=clock.now(),
            peer=peer,
            parent=parent,
            by=actor.now() or self._by(parent),
            cancellable=cancellable,
        )
        if operation.id in self._ended:
            raise OperationExists(operation=operation.id, host=self._host)
        return self._begin(Live(operation, self.journal, self.hub), work)

    def _by(self, operation: str) -> str:
        found = self.live(operation)
        return found.by if found else ""

    async def unfinished(self) -> tuple[Operation, ...]:
        """What the journal holds without an end and nobody works on: for a daemon's start."""
        found = await self._read(self.journal.unfinished(), [])
        self._found = {one.operation.id: one for one in found}
        working = {name for name, live in self._live.items() if live.task}
        return tuple(one.operation for one in found if one.operation.id not in working)

    def resume(self, operation: Operation, work: Work) -> Operation:
        """Attach `work` to an operation of `unfinished`; its history and numbers go on."""
        steps = tuple(
            replace(step, state="failed", text="interrupted: sternad stopped")
            if step.state == "running"
            else step
            for step in operation.steps
        )
        live = Live(replace(operation, steps=steps), self.journal, self.hub)
        found, held = self._found.pop(operation.id, None), self._live.get(operation.id)
        if held:
            live.event, live.line, live.samples = held.event, held.line, held.samples
            live.subscribers, live.ended = held.subscribers, held.ended
        elif found:
            live.event, live.line = found.event + EVENT_GAP, found.line
            live.samples = found.samples
        return self._begin(live, work)

    def _begin(self, live: Live, work: Work) -> Operation:
        operation = live.operation
        if self._closing:
            raise Stopping(host=self._host)
        held = self._live.get(operation.id)
        if held and held.task:
            raise OperationExists(operation=operation.id, host=self._host)
        self._live[operation.id] = live
        live.change(durable=True)
        task = asyncio.get_running_loop().create_task(
            self._work(live, work), name=f"{operation.kind} {operation.id}"
        )
        live.task = task
        task.add_done_callback(lambda task: self._settle(live, task))
        return live.operation

    async def _work(self, live: Live, work: Work) -> dict[str, Any]:
        try:
            async with asyncio.timeout(WRITE_S):
                await self._read(self.journal.flush(), None)
        except TimeoutError:
            log.warning("the journal is slow; operation %s begins without it", live.operation.id)
        if live.operation.state is OperationState.QUEUED:
            live.change(state=OperationState.RUNNING)
        return await work(Job(live))

    def background(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run something that is no operation, such as a watch, until it ends or the daemon stops."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("background task %s failed", task.get_name(), exc_info=error)

    # ---- look ---------------------------------------------------------------------------------

    def live(self, operation: str) -> Operation | None:
        """The snapshot of an operation under way here."""
        found = self._live.get(operation)
        return found.operation if found else None

    def active(self, vm: str = "") -> tuple[Operation, ...]:
        """Operations under way, oldest first; of the VM with this name or id, if given."""
        every = (live.operation for live in self._live.values())
        return tuple(one for one in every if not vm or vm in (one.vm, one.vm_id))

    async def get(self, operation: str) -> Operation:
        """Raises OperationNotFound."""
        ended = self._ended.get(operation)
        found = self.live(operation) or (ended.operation if ended else None)
        found = found or await self._read(self.journal.get(operation), None)
        if found is None:
            raise OperationNotFound(operation=operation, host=self._host)
        return found

    async def list(
        self, *, vm: str = "", kind: str = "", state: str = "", limit: int = 100
    ) -> tuple[Operation, ...]:
        """Newest first. What the journal could not write is there as long as it is in memory."""
        asked = self.journal.newest(vm=vm, kind=kind, state=state, limit=limit)
        found = {one.id: one for one in await self._read(asked, [])}
        held = [
            *(one.operation for one in self._ended.values()),
            *(live.operation for live in self._live.values()),
        ]
        found |= {
            one.id: one
            for one in held
            if (not vm or vm in (one.vm, one.vm_id)) and (not kind or kind == one.kind)
        }
        newest = sorted(found.values(), key=lambda one: one.created, reverse=True)
        return tuple([one for one in newest if not state or state == one.state][:limit])

    async def parts(self, parent: str) -> tuple[Operation, ...]:
        """The operations that `parent` consists of, oldest first."""
        found = {one.id: one for one in await self._read(self.journal.parts(parent), [])}
        held = [
            *(one.operation for one in self._ended.values()),
            *(live.operation for live in self._live.values()),
        ]
        found |= {one.id: one for one in held if one.parent == parent}
        return tuple(sorted(found.values(), key=lambda one: one.created))

    async def wait(self, operation: str, timeout: float | None = None) -> Operation:  # noqa: ASYNC109
        """The operation when it is final, or as it is after `timeout` seconds."""
        live = self._live.get(operation)
        if live is not None:
            try:
                async with asyncio.timeout(timeout):
                    await live.ended.wait()
            except TimeoutError:
                pass
        return await self.get(operation)

    async def subscribe(self, operation: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """Events after number `after`: those that happened, then those to come, each once, in order.

        Ends after the final state; or early, when the reader is too slow or the daemon stops: then
        come back with the number of the last event read. A replay has every kept line and sample, and
        of the states the newest only. Close it (`contextlib.aclosing`).
        """
        live = self._live.get(operation)
        if live is None:
            async for event in self._replay(await self.get(operation), after, None):
                yield event
            return
        upto, subscription = live.event, live.subscribers.add()
        try:
            async for event in self._replay(live.operation, after, upto):
                yield event
            async for event in subscription:
                if event.number > after:
                    yield event
        finally:
            live.subscribers.discard(subscription)

    async def _replay(
        self, operation: Operation, after: int, upto: int | None
    ) -> AsyncIterator[Event]:
        while True:
            asked = self.journal.events(operation.id, after, upto)
            page = await self._read(asked, [])
            for one in page:
                after = one.number
                yield Event(one.number, one.kind, one.data)
            if not page:
                break
        ended = self._ended.get(operation.id)
        if upto is None and ended and ended.event > after:  # the journal could not write it
            yield Event(ended.event, "state", plain.text(ended.operation))

    async def _read(self, asked: Awaitable[T], default: T) -> T:
        try:
            return await asked
        except (sqlite3.Error, RuntimeError) as error:
            log.warning("the journal cannot be read: %s", error)
            return default

    # ---- end ----------------------------------------------------------------------------------

    async def cancel(self, operation: str) -> Operation:
        """Ask the work to stop and undo. Asking again changes nothing.

        Raises OperationNotFound, OperationEnded, NotCancellable or TooLateToCancel.
        """
        live = self._live.get(operation)
        if live is None or live.task is None or live.task.done():
            if live and live.task:
                self._settle(live, live.task)
            found = await self.get(operation)
            if live is None or found.state.is_final:
                raise OperationEnded(operation=operation, state=found.state)
            raise TooLateToCancel(operation=operation)
        if live.stop:
            return live.operation
        if not live.cancellable:
            raise NotCancellable(operation=operation, kind=live.operation.kind)
        if live.shields or live.operation.state is OperationState.UNKNOWN:
            raise TooLateToCancel(operation=operation)
        live.stop = "user"
        live.change(state=OperationState.CANCELLING)
        live.task.cancel()
        return live.operation

    async def adjust(self, operation: str, wishes: Any) -> Operation:
        """Change what is wished for of an operation under way.

        Raises OperationNotFound, OperationEnded, NotAdjustable, and what its work says to it.
        """
        live = self._live.get(operation)
        if live is None:
            found = await self.get(operation)
            raise OperationEnded(operation=operation, state=found.state)
        if live.adjust is None or live.stop:
            raise NotAdjustable(operation=operation, kind=live.operation.kind)
        await live.adjust(wishes)
        return live.operation

    def _settle(self, live: Live, task: asyncio.Task[dict[str, Any]]) -> None:
        """Write how it ended, once."""
        if live.settled:
            return
        live.settled = True
        fields = outcome(live, task)
        if fields is not None:
            steps = tuple(_ended(step) for step in live.operation.steps)
            live.change(durable=True, steps=steps, cancellable=False, **fields)
        live.task = None
        if live.operation.state.is_final:
            del self._live[live.operation.id]
            self._ended[live.operation.id] = Ended(live.operation, live.event)
            if len(self._ended) > ENDED_KEPT:
                self._ended.popitem(last=False)
            live.subscribers.end()
            live.ended.set()

    async def close(self) -> None:
        """Stop all work, within HANDOVER_S + UNDO_S. Guests and unfinished operations stay."""
        self._closing = True
        for live in list(self._live.values()):
            live.closing = True
            if live.task and not live.stop and not live.shields:
                live.stop = "shutdown"
                live.task.cancel()
        await self._gather(HANDOVER_S)
        for live in list(self._live.values()):
            if live.task and not live.task.done():
                log.warning("operation %s did not stop in time", live.operation.id)
                live.stop = "shutdown"
                live.task.cancel()
        await self._gather(UNDO_S)
        await self._end_background()  # last: work that unwinds still needs its watches
        for live in list(self._live.values()):
            live.subscribers.end()
            live.ended.set()
        self.hub.subscribers.end()

    async def _end_background(self) -> None:
        tasks = set(self._background)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=BACKGROUND_S)

    async def _gather(self, seconds: float) -> None:
        tasks = {live.task for live in self._live.values() if live.task}
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for live in list(self._live.values()):
            if live.task and live.task.done():
                self._settle(live, live.task)


def _ended(step: Step) -> Step:
    return replace(step, state="failed") if step.state == "running" else step
