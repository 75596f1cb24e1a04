"""Log-ins that fail make the next ones wait: for each user, and for each address.

Promises: a restart is no fresh start, what has failed is on the disk before it is told. Nobody is
locked out for longer than LONGEST_S after the last try; a try that comes too early is not looked at and does not count. Names that are no
users' are treated as if they were.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from sterna.errors import LockedOut
from sterna.host.store import Store
from sterna.model.access import Failures

FREE = {"user": 5, "address": 20}  # failures before anybody must wait
FIRST_S = 30.0  # twice as long after each further one
LONGEST_S = 900.0
MAX_KEPT = 2000  # of each; a flood of names pushes out the oldest
KEY = "log-ins"


class Lockout:
    """The record is below `directory`."""

    def __init__(self, directory: Path, host: str) -> None:
        self._host = host
        self._store = Store(directory, Failures)
        records, self.damaged = self._store.load()
        self._now = records.get(KEY, Failures())

    def require_open(self, user: str, address: str) -> None:
        """Raises LockedOut."""
        left = max(self._left(one) for one in _keys(user, address))
        if left > 0:
            raise LockedOut(host=self._host, seconds=round(left + 0.5))

    def _left(self, key: str) -> float:
        over = self._now.count.get(key, 0) - FREE[key.partition(":")[0]]
        if over < 0:
            return 0.0
        wait = min(LONGEST_S, FIRST_S * 2.0 ** min(over, 10))
        left = self._now.last.get(key, 0.0) + wait - time.time()
        return min(left, wait)  # the clock was set back: not longer than from now on

    async def failed(self, user: str, address: str) -> None:
        """One more; durable on return. Raises StateNotWritten."""
        count, last = dict(self._now.count), dict(self._now.last)
        for key in _keys(user, address):
            count[key] = count.get(key, 0) + 1
            last[key] = time.time()
        for key in sorted(last, key=lambda one: last[one])[: max(0, len(last) - MAX_KEPT)]:
            del count[key], last[key]
        await self._write(Failures(count=count, last=last))

    async def forgive(self, user: str) -> None:
        """The user is there: earlier failures do not count any more; those of addresses do."""
        key = _keys(user, "")[0]
        if key in self._now.count:
            kept = {name: n for name, n in self._now.count.items() if name != key}
            last = {name: n for name, n in self._now.last.items() if name != key}
            await self._write(Failures(count=kept, last=last))

    async def _write(self, new: Failures) -> None:
        self._now = new  # counts at once, even if the disk is full
        await self._store.write(KEY, new)


def _keys(user: str, address: str) -> Sequence[str]:
    """Hashes: people type passwords where names belong."""
    return [
        f"{what}:{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]}"
        for what, text in (("user", user), ("address", address))
    ]
