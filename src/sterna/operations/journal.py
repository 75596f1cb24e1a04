"""The journal: what every operation did, on disk, written by one thread.

Promises: `save`, `add_line` and `add_sample` never block and never raise, whatever the disk does: what
cannot be written is reported once, the newest state of each operation is tried again with the next
write, and the operation goes on. Reads see everything queued before them. A damaged file is set
aside and reported in `damaged`, at the start or in mid-run, and a new one is begun.
It stays bounded: `Limits` say how many operations, and how many lines and samples of each.
The cost of a write or a read does not depend on how many operations are kept.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sterna import clock
from sterna.errors import JournalCorrupt
from sterna.model.operation import LogLine, Operation
from sterna.operations import tables
from sterna.operations.store import earlier, is_damage, open_file, open_memory, set_aside
from sterna.operations.tables import Limits, Recorded, Unfinished

log = logging.getLogger(__name__)

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], Any]

BATCH = 256  # changes in one transaction, so that a busy host costs one fsync, not hundreds
REPEAT_S = 300.0  # between two lines of the log about the same trouble
MAX_QUEUED = 20_000  # with the disk stuck, samples and lines beyond this are dropped: ~10 MB


@dataclass(frozen=True, slots=True)
class _Item:
    do: Change
    answer: asyncio.Future[Any] | None = None  # of a read, on the loop that asked
    durable: bool = False
    owed: str = ""  # the operation whose state this writes: it must be tried again


class Journal:
    """`Journal(path)` opens at once; `await close()` when nothing writes any more."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.limits = limits or Limits()
        self.damaged: list[JournalCorrupt] = earlier(path)
        self.problem = ""  # why it cannot be written now; empty: it can
        self._told_bad: float | None = None  # when; a disk that is nearly full fails now and then
        self._told_good = True
        self._owed: dict[str, _Item] = {}  # newest states not written yet; writer only
        self._connection = self._open()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    # ---- writes: queued, never awaited ------------------------------------------------------

    def save(self, operation: Operation, event: int, body: str, *, durable: bool = False) -> None:
        """Keep this snapshot (`body`: as JSON), which `event` announced, instead of the last one.

        `durable`: it shall survive a power cut, not only the end of this process.
        """
        self._put(_Item(self._saving(operation, event, body), durable=durable, owed=operation.id))

    def add_line(self, operation: str, event: int, number: int, body: str) -> None:
        """Line `number` of the operation's log; `body` is a LogLine as JSON."""
        if not self._is_full():
            limits = self.limits
            self._put(_Item(lambda c: tables.add_line(c, operation, (event, number), body, limits)))

    def add_sample(self, operation: str, event: int, body: str) -> None:
        if not self._is_full():
            self._put(_Item(lambda c: tables.add_sample(c, operation, event, body)))

    def thin(self, operation: str) -> None:
        """Halve the samples of an operation, evenly over its time, keeping the first and last."""
        self._put(_Item(lambda c: tables.thin(c, operation, self.limits.samples // 2)))

    # ---- reads ------------------------------------------------------------------------------

    async def get(self, operation: str) -> Operation | None:
        return await self._ask(lambda c: tables.get(c, operation))

    async def newest(
        self, *, vm: str = "", kind: str = "", state: str = "", limit: int = 100
    ) -> list[Operation]:
        """Newest first; `vm` is a name or an id."""
        return await self._ask(lambda c: tables.list_operations(c, vm, kind, state, limit))

    async def parts(self, parent: str) -> list[Operation]:
        """The operations that `parent` consists of, oldest first."""
        return await self._ask(lambda c: tables.parts(c, parent))

    async def unfinished(self) -> list[Unfinished]:
        """Operations that had no end when the daemon stopped, oldest first."""
        return await self._ask(tables.unfinished)

    async def lines(self, operation: str, after: int = 0, limit: int = 1000) -> list[LogLine]:
        return await self._ask(lambda c: tables.lines(c, operation, after, limit))

    async def samples(self, operation: str) -> list[dict[str, Any]]:
        return await self._ask(lambda c: tables.samples(c, operation))

    async def events(
        self, operation: str, after: int, upto: int | None = None, limit: int = 500
    ) -> list[Recorded]:
        """What happened in (after, upto], in order: every line, the samples and the newest state."""
        return await self._ask(lambda c: tables.events(c, operation, after, upto, limit))

    async def flush(self) -> None:
        """Everything queued so far has been written, or has failed and was reported."""
        await self._ask(lambda _: None)

    async def close(self) -> None:
        """Write what is queued and close the file. Calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _saving(self, operation: Operation, event: int, body: str) -> Change:
        return lambda c: tables.save(c, operation, (event, body), self.limits)

    # ---- the writer thread ------------------------------------------------------------------

    def _put(self, item: _Item) -> None:
        if self._closed:
            log.warning("the journal is closed; a change was not written")
            return
        self._queue.put(item)

    def _is_full(self) -> bool:
        return self._queue.qsize() > MAX_QUEUED

    async def _ask(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise RuntimeError("the journal is closed")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Item(read, answer=answer))
        return await answer

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection, damaged = open_file(self.path)
        except (OSError, sqlite3.Error) as error:
            self.problem = f"the journal {self.path} cannot be used: {error}"
            log.error(  # noqa: TRY400 - the sentence says it all
                "%s; the history lasts only until this daemon stops", self.problem
            )
            return open_memory()
        if damaged:
            self.damaged.append(damaged)
        return connection

    def _write(self) -> None:
        is_open = True
        while is_open:
            batch = [self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            is_open = None not in batch
            items = [item for item in batch if item is not None]
            self._commit([item for item in items if item.answer is None])
            for item in items:
                if item.answer is not None:
                    self._reply(item, item.answer)
        self._connection.close()

    def _commit(self, items: list[_Item]) -> None:
        """All of them in one transaction; if that fails, remember the states and go on."""
        owed = list(self._owed.values())
        if not items and not owed:
            return
        try:
            self._transact([*owed, *items])
        except Exception as error:  # noqa: BLE001 - whatever it was, the next batch must be written
            if not is_damage(error) or not self._begin_anew(error):
                self._remember(items, error)
                return
            try:
                self._transact([*owed, *items])
            except Exception as again:  # noqa: BLE001
                self._remember(items, again)
                return
        self._owed.clear()
        if self.problem and self._has_file():
            self.problem = ""
            if not self._told_good:
                self._told_good = True
                log.warning("the journal is written again")

    def _transact(self, items: list[_Item]) -> None:
        level = "FULL" if any(item.durable for item in items) else "NORMAL"
        self._connection.execute(f"PRAGMA synchronous = {level}")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for item in items:
                try:
                    item.do(self._connection)
                except sqlite3.IntegrityError as error:  # lines of an operation never written
                    log.warning("the journal skipped a change: %s", error)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _remember(self, items: list[_Item], error: Exception) -> None:
        for item in items:
            if item.owed:
                self._owed[item.owed] = replace(item, durable=True)
        self.problem = f"the journal {self.path} cannot be written: {error}"
        if self._told_bad is None or clock.monotonic() - self._told_bad > REPEAT_S:
            self._told_bad, self._told_good = clock.monotonic(), False
            log.error("%s; operations go on, their history has gaps", self.problem)

    def _has_file(self) -> bool:
        return bool(self._connection.execute("PRAGMA database_list").fetchone()[2])

    def _begin_anew(self, error: Exception) -> bool:
        """The file went bad while we used it."""
        if not self._has_file():
            return False
        self._connection.close()
        self.damaged.append(set_aside(self.path, str(error)))
        self._connection = self._open()
        return True

    def _reply(self, item: _Item, answer: asyncio.Future[Any]) -> None:
        try:
            outcome: Any = item.do(self._connection)
        except sqlite3.Error as error:
            if is_damage(error) and self._begin_anew(error):
                self._reply(item, answer)
                return
            _settle(answer, None, error)
        except Exception as error:  # noqa: BLE001 - the asker gets it, the thread must live
            _settle(answer, None, error)
        else:
            _settle(answer, outcome, None)


def _settle(answer: asyncio.Future[Any], outcome: Any, error: Exception | None) -> None:
    def settle() -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(outcome)

    try:
        answer.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:  # the loop that asked is gone
        log.debug("nobody waits for an answer of the journal any more")
