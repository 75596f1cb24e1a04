"""Who did what here: an append-only log whose lines are chained by hashes (`chain.py`).

A request that changes something is written down before it is done (`begin`), and again with its
outcome before it is answered (`end`); one that was refused, once. What a running move needs is
written beside it (`note`): it never waits for this disk, nor fails with it.

Promises: nobody floods it without being let in: of the refusals of one address, so many a minute
are written, the others counted. Bodies are never in it, so no secret is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sterna import clock
from sterna.errors import AuditNotWritten, StateNotWritten
from sterna.security import chain
from sterna.security.chain import Chain, Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")

WRITE_S = 10.0  # a disk that takes longer for a line is none
PER_MINUTE = 60  # refusals of one address that are written
MAX_ADDRESSES = 1000
MAX_OWED = 1000  # lines that wait for a disk that was full
MAX_TEXT = 300  # characters of anything that a caller has chosen


class Audit:
    """The one of this host, below `directory`. Raises StateNotWritten if it cannot even be opened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problem = ""  # why it cannot be written
        try:
            self._chain = Chain(directory)
        except OSError as error:
            raise StateNotWritten(path=directory, reason=error.strerror or str(error)) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._owed: deque[dict[str, Any]] = deque(maxlen=MAX_OWED)  # the thread's own
        self._refusals: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._is_closed = False

    # ---- writing ---------------------------------------------------------------------------

    async def begin(self, fields: Mapping[str, Any]) -> int:
        """Something is about to be done; the number of its line. Raises AuditNotWritten."""
        return await self._write({"what": "asked", **fields})

    async def end(self, of: int, fields: Mapping[str, Any]) -> None:
        """What became of it. It is done: that this cannot be written is told later, and owed."""
        try:
            await self._write({"what": "done", "of": of, **fields}, is_owed=True)
        except AuditNotWritten as error:
            log.error("the outcome of audit line %d is not written yet: %s", of, error.facts)  # noqa: TRY400

    async def told(self, fields: Mapping[str, Any]) -> None:
        """Something that is done at once, such as a log-in. Raises AuditNotWritten."""
        await self._write({"what": "done", **fields})

    def note(self, fields: Mapping[str, Any]) -> None:
        """The same, soon; owed while it cannot be written."""
        if not self._is_closed:
            self._thread.submit(self._append_or_owe, {"what": "done", **fields})

    async def refused(self, fields: Mapping[str, Any]) -> None:
        """Somebody may not. Waits for the disk, but never raises."""
        line = self._refusal(fields)
        try:
            if line is not None:
                await self._write(line, is_owed=True)
        except AuditNotWritten as error:
            log.error("a refusal is not written yet: %s", error.facts)  # noqa: TRY400

    def refused_soon(self, fields: Mapping[str, Any]) -> None:
        """The same for who cannot wait."""
        line = self._refusal(fields)
        if line is not None and not self._is_closed:
            self._thread.submit(self._append_or_owe, line)

    def _refusal(self, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        counted = self._count(str(fields.get("from", "")))
        if counted is None:
            return None
        return {"what": "refused", **fields, **({"unwritten": counted} if counted else {})}

    def _count(self, address: str) -> int | None:
        """None: not to be written; else how many of that address were not, before."""
        now = clock.monotonic()
        began, count = self._refusals.pop(address, (now, 0))
        former = 0
        if now - began > 60:
            former = max(0, count - PER_MINUTE)
            began, count = now, 0
        self._refusals[address] = began, count + 1
        if len(self._refusals) > MAX_ADDRESSES:
            self._refusals.popitem(last=False)
        return former if count < PER_MINUTE else None

    async def _write(self, fields: dict[str, Any], *, is_owed: bool = False) -> int:
        work = self._append_or_owe if is_owed else self._append
        try:
            return await self._in_thread(lambda: work(fields))
        except TimeoutError as error:
            reason = f"the disk has not answered within {WRITE_S:g} s"
            raise AuditNotWritten(path=self.directory, reason=reason) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise AuditNotWritten(path=self.directory, reason=reason) from error

    async def _in_thread(self, work: Callable[[], T]) -> T:
        future: Future[T] = self._thread.submit(work)
        async with asyncio.timeout(WRITE_S):
            return await asyncio.shield(asyncio.wrap_future(future))

    # ---- the thread ------------------------------------------------------------------------

    def _append(self, fields: dict[str, Any]) -> int:
        try:
            while self._owed:
                self._chain.append({**self._owed[0], "late": True})
                self._owed.popleft()
            number = self._chain.append(fields)
        except OSError as error:
            if not self.problem:
                log.error("the audit cannot be written: %s", error)  # noqa: TRY400
            self.problem = f"the audit {self.directory} cannot be written: {error.strerror}"
            raise
        self.problem = ""
        return number

    def _append_or_owe(self, fields: dict[str, Any]) -> int:
        try:
            return self._append(fields)
        except OSError:
            self._owed.append({**fields, "at": clock.now()})
            return 0

    # ---- reading ---------------------------------------------------------------------------

    async def find(
        self, *, since: str = "", who: str = "", vm: str = "", limit: int = 1000
    ) -> list[dict[str, Any]]:
        """Newest first, each with its outcome. Blocks no writer."""
        return await asyncio.to_thread(self._find, since, who, vm, limit)

    def _find(self, since: str, who: str, vm: str, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        outcomes: dict[int, dict[str, Any]] = {}
        for entry in chain.entries(self.directory):
            if since and str(entry.get("time", "")) < since:
                break
            if entry.get("what") == "done" and "of" in entry:
                outcomes[entry["of"]] = entry
                continue
            row = {key: value for key, value in entry.items() if key != "prev"}
            if entry.get("what") == "asked":
                row |= _outcome(outcomes.pop(entry.get("n", 0), None))
            if who and who not in (row.get("who"), row.get("via")):
                continue
            if vm and vm not in (row.get("vm"), row.get("vm_id")):
                continue
            found.append(row)
            if len(found) >= limit:
                break
        return found

    async def verify(self) -> Verdict:
        """Whether all lines are as they were written; writers wait meanwhile."""
        work: Future[Verdict] = self._thread.submit(chain.verify, self.directory)
        return await asyncio.wrap_future(work)

    def files(self) -> list[Path]:
        """For an export, the oldest first."""
        return chain.files(self.directory)

    async def close(self) -> None:
        """What was noted is written when this returns."""
        self._is_closed = True
        await asyncio.to_thread(self._thread.shutdown)
        self._chain.close()


def _outcome(done: Mapping[str, Any] | None) -> dict[str, Any]:
    if done is None:  # sternad ended in between, or it is under way
        return {"status": None}
    return {key: done[key] for key in ("status", "code", "operation", "vm") if key in done}


def short(text: str) -> str:
    """What a caller has chosen, as one printable piece of bounded length."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 1] + "…"
