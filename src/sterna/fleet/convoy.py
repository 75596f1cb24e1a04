"""Several VMs as one operation: each moves by an operation of its own, a part of the whole.

Promises: they begin in their order, and how many go at a time is the hosts' own limit; one that
fails stops no other; a cancel of the whole cancels each that is under way, and returns when all of
them have ended. What became of each is in the operation's result, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sterna import clock
from sterna.errors import (
    AllRefused,
    Conflict,
    MoveRefused,
    NoneMoved,
    NotFound,
    OperationNotFound,
    Refused,
    SeveralCancelled,
    SomeStayed,
    SomeUnknown,
    SternaError,
    VMNotFound,
    from_problem,
)
from sterna.model import edge
from sterna.model.move import Adjustment, MoveWishes
from sterna.model.operation import Operation, OperationState
from sterna.model.several import Part, PartState, counted
from sterna.move.engine import Moves
from sterna.operations.job import Told
from sterna.operations.runner import Job
from sterna.vms.service import VMs

TELL_S = 0.5  # between two samples of the whole
RETRY_S = 0.5
NAMED = 3  # of those that stayed, in one sentence

Tell = Callable[[Operation], None]

ENDS = {
    OperationState.SUCCEEDED: PartState.MOVED,
    OperationState.WARNED: PartState.MOVED,
    OperationState.CANCELLED: PartState.CANCELLED,
    OperationState.FAILED: PartState.FAILED,
    OperationState.UNKNOWN: PartState.UNKNOWN,
    OperationState.PARTIAL: PartState.LEFTOVERS,
}


class Driver(Protocol):
    """Who moves one VM of several."""

    async def begin(self, part: Part) -> str:
        """Start its move; the id of that operation. Raises SternaError: nothing has happened.

        Cancelled, it leaves no move behind that has begun.
        """

    async def follow(self, part: Part, tell: Tell) -> Operation:
        """The end of its move; `tell` gets each snapshot on the way. Raises SternaError."""

    async def cancel(self, part: Part) -> None:
        """Ask its move to stop. Raises SternaError."""

    async def adjust(self, part: Part, wished: Adjustment) -> None:
        """Change what its move is to keep to. Raises SternaError."""

    def prefer(self, wished: Adjustment) -> None:
        """The same for all that have not begun."""

    async def has_left(self, part: Part) -> bool:
        """Whether it is away from its source, after a move that ended well, or left something."""


class Local:
    """Moves that this host drives itself."""

    def __init__(self, moves: Moves, vms: VMs, parent: str, wishes: MoveWishes) -> None:
        self._moves = moves
        self._vms = vms
        self._runner = vms.runner
        self._parent = parent
        self._wishes = wishes

    async def begin(self, part: Part) -> str:
        """Plan its move and start it; it waits for its turn by itself."""
        wishes = replace(self._wishes, target=part.target)
        return (await self._moves.begin(part.vm_id, wishes, self._parent)).id

    async def follow(self, part: Part, tell: Tell) -> Operation:
        """Its end, and all that it tells until then."""
        after = 0
        while True:
            events = self._runner.subscribe(part.operation, after)
            async with contextlib.aclosing(events):
                async for event in events:
                    after = event.number
                    if (now := self._runner.live(part.operation)) is not None:
                        tell(now)
            found = await self._runner.get(part.operation)
            if found.state.is_final:
                return found
            await asyncio.sleep(RETRY_S)  # it told faster than we heard

    async def cancel(self, part: Part) -> None:
        """Unless it has ended, or is about to."""
        with contextlib.suppress(Conflict, OperationNotFound):
            await self._runner.cancel(part.operation)

    async def adjust(self, part: Part, wished: Adjustment) -> None:
        """Unless it has ended, or is in a phase that cannot change."""
        with contextlib.suppress(Conflict, OperationNotFound):
            await self._runner.adjust(part.operation, wished)

    def prefer(self, wished: Adjustment) -> None:
        """Of all moves that begin from now on."""
        self._wishes = wished.of(self._wishes)

    async def has_left(self, part: Part) -> bool:
        """By its record."""
        vm = self._vms.by_id(part.vm_id)
        return vm is None or not vm.is_here


class Convoy:
    """The VMs of one operation, and their moves."""

    def __init__(self, job: Job, driver: Driver, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self._job = job
        self._driver = driver
        self._turn = asyncio.Lock()  # begun one after the other, in order
        self._shares: dict[int, float] = {}  # how much of each has been done, 0 to 1
        self._told_at = 0.0
        self._doubts = False
        self._told = {step.name for step in job.operation.steps}  # by a former life, or round

    async def run(self) -> tuple[Part, ...]:
        """What became of each. Raises SeveralCancelled."""
        job = self._job
        self._report()
        try:
            with job.adjustable(self._adjust):
                async with asyncio.TaskGroup() as group:
                    for index in range(len(self.parts)):
                        group.create_task(self._one(index))
        except asyncio.CancelledError:
            if job.stopped_by != "user":
                raise
            await self._cancel()
            done, total = counted(self.parts)
            fix = f"See what became of each: sterna op show {job.id}"
            raise SeveralCancelled(done=done, total=total, fix=fix) from None
        return tuple(self.parts)

    async def _adjust(self, wished: Adjustment) -> None:
        """The user wants other limits: for each that is under way, and for those to come."""
        self._driver.prefer(wished)
        for part in self.parts:
            if part.operation and not part.state.is_final:
                await self._driver.adjust(part, wished)

    async def _one(self, index: int) -> None:
        was_final = self.parts[index].state.is_final
        async with self._turn:
            if self.parts[index].state is PartState.WAITING and not self.parts[index].operation:
                await self._begin(index)
        part = self.parts[index]
        if was_final and part.vm in self._told:
            return
        if part.state is PartState.SKIPPED:
            self._job.log(f"{part.vm}: {part.reason}")
            return
        async with self._job.step(part.vm) as told:
            if not part.state.is_final:
                await self._follow(index)
            _say(told, self.parts[index])

    async def _begin(self, index: int) -> None:
        part = self.parts[index]
        try:
            operation = await self._driver.begin(part)
        except VMNotFound:
            self._set(index, state=PartState.SKIPPED, reason=f"{part.source} has it no more")
        except SternaError as error:
            self._fail(index, error)
        else:
            self._set(index, state=PartState.RUNNING, operation=operation)

    async def _follow(self, index: int) -> None:
        def tell(now: Operation) -> None:
            if not now.state.is_final:
                state = ENDS.get(now.state, PartState.RUNNING)
                self._set(index, state=state, reason=_why(now))
                self._sample(index, now)

        try:
            ended = await self._driver.follow(self.parts[index], tell)
        except SternaError as error:
            self._fail(index, error)
            return
        state = ENDS[ended.state]
        if state.has_moved and not await self._driver.has_left(self.parts[index]):
            state = PartState.FAILED  # such as taken back, after its target was fenced
        if _was_refused(ended):
            state = PartState.REFUSED
        fix = str(ended.error.get("hint", ""))
        self._set(index, state=state, reason=_why(ended), fix=fix)
        self._tell()

    async def _cancel(self) -> None:
        """Each that is under way; what is too late to be cancelled ends by itself."""
        for index, part in enumerate(self.parts):
            if part.operation and not part.state.is_final:
                try:
                    await self._driver.cancel(part)
                except SternaError as error:
                    self._job.log(f"{part.vm}: {error.message}", "warning")
            elif not part.state.is_final:
                self._set(index, state=PartState.CANCELLED, reason="cancelled before its turn")
        async with asyncio.TaskGroup() as group:
            for index, part in enumerate(self.parts):
                if not part.state.is_final:
                    group.create_task(self._follow(index))

    # ---- telling ---------------------------------------------------------------------------

    def _fail(self, index: int, error: SternaError) -> None:
        state = (
            PartState.REFUSED
            if isinstance(error, (Refused, NotFound, Conflict))
            else PartState.FAILED
        )
        reason = str(error.facts["summary"]) if isinstance(error, MoveRefused) else error.message
        self._set(index, state=state, reason=reason, fix=error.advice)

    def _set(self, index: int, **fields: Any) -> None:
        new = replace(self.parts[index], **fields)
        if new == self.parts[index]:
            return
        self.parts[index] = new
        self._report()
        self._doubt()

    def _report(self) -> None:
        self._job.report({"vms": edge.dump(tuple(self.parts))})

    def _doubt(self) -> None:
        """If nothing is left but doubts, that is what the whole is, until one of them ends."""
        open_ = [one for one in self.parts if not one.state.is_final]
        doubts = bool(open_) and all(one.state is PartState.UNKNOWN for one in open_)
        if doubts == self._doubts:
            return
        self._doubts = doubts
        if doubts:
            names = ", ".join(one.vm for one in open_)
            self._job.unknown(SomeUnknown(names=names, operation=open_[0].operation))
        else:
            self._job.known()

    def _sample(self, index: int, now: Operation) -> None:
        """What one tells of itself, as a part of the whole."""
        total, remaining = now.progress.get("total"), now.progress.get("remaining")
        if total:
            self._shares[index] = max(0.0, 1 - (remaining or 0) / total)
        if clock.monotonic() - self._told_at >= TELL_S:
            self._tell()

    def _tell(self) -> None:
        self._told_at = clock.monotonic()
        done, total = counted(self.parts)
        shares = [
            1.0 if part.state.is_final else self._shares.get(index, 0.0)
            for index, part in enumerate(self.parts)
        ]
        self._job.sample({
            "time_s": round(self._job.elapsed, 1),
            "vms": total,
            "vms_moved": done,
            "vms_ended": sum(
                part.state.is_final and part.state is not PartState.SKIPPED for part in self.parts
            ),
            "share": round(sum(shares) / len(shares), 3) if shares else 1.0,
            "under_way": {
                part.vm: round(self._shares.get(index, 0.0), 3)
                for index, part in enumerate(self.parts)
                if part.state is PartState.RUNNING
            },
        })  # fmt: skip


def concluded(parts: Sequence[Part], operation: str) -> dict[str, Any]:
    """The report of the whole. Raises SomeStayed, NoneMoved or AllRefused if not all have moved."""
    done, total = counted(parts)
    stayed = [
        one for one in parts if not one.state.has_moved and one.state is not PartState.SKIPPED
    ]
    if stayed:
        more = len(stayed) - NAMED
        told = "; ".join(f"{one.vm} did not: {one.reason}" for one in stayed[:NAMED])
        facts = {
            "done": done,
            "total": total,
            "stayed": told + (f"; and {more} more did not" if more > 0 else ""),
            "fix": next((one.fix for one in stayed if one.fix), "")
            if len(stayed) == 1
            else f"See what became of each: sterna op show {operation}",
        }
        if done:
            raise SomeStayed(**facts)
        if all(one.state is PartState.REFUSED for one in stayed):
            raise AllRefused(**facts)
        raise NoneMoved(**facts)
    left = [f"{one.vm}: {one.reason}" for one in parts if one.state.has_moved and one.reason]
    text = {0: "there was nothing to move", 1: "1 VM moved"}.get(done, f"{done} VMs moved")
    return {"vms": edge.dump(tuple(parts)), "text": text, "warnings": left}


def _say(told: Told, part: Part) -> None:
    if part.state.has_moved:
        why = f" ({part.reason})" if part.reason else ""
        told.say(f"moved to {part.target}{why}")
    else:
        told.failed(part.reason or str(part.state))


def _why(now: Operation) -> str:
    """What is worth to know of its end, or of its doubt."""
    if now.error:
        if now.error.get("code") == MoveRefused.code:
            return str(now.error["facts"].get("summary", ""))
        return str(now.error.get("title", ""))
    return "; ".join(now.result.get("warnings") or ()) if now.state.is_final else ""


def _was_refused(ended: Operation) -> bool:
    return bool(ended.error) and isinstance(from_problem(ended.error), Refused)
