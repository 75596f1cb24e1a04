"""How fast this host and others really are with each carrier, learnt from the moves between them.

A forecast rests on what processors do in general; each move that ended well tells what these did. What
cannot be written or read is as good as never learnt: it is worth no move.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sterna.errors import StateNotWritten
from sterna.host.store import Store
from sterna.model.move import Phase
from sterna.move import carriers
from sterna.move.carriers import Choice, Pace

log = logging.getLogger(__name__)


class Paces:
    """Of moves away from this host; `folder` has a record for each target."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder, Pace)
        self._known: dict[str, Pace] = {}

    def load(self) -> None:
        """What was learnt before."""
        self._known, damaged = self._store.load()
        for one in damaged:
            log.warning("what was learnt of moves to %s is lost: %s", one.key, one.reason)

    def of(self, target: str) -> Pace:
        """As far as it is known."""
        return self._known.get(target, Pace())

    async def learn(self, target: str, choice: Choice | None, result: dict[str, Any]) -> None:
        """From a move that has ended well and as it was forecast: nothing slowed it down on purpose."""
        if choice is None or choice.measured is None or "rounds" not in result:
            return
        is_odd = (
            result["throttle"]
            or result.get("down_s")
            or Phase.POSTCOPY in result["phases"]
            or choice.measured.limit
        )
        if is_odd or result.get("carrier") != choice.kind:
            return
        found = carriers.learnt(choice.measured, choice.kind, result["total_s"])
        if found == self.of(target):
            return
        self._known[target] = found
        try:
            await self._store.write(target, found)
        except StateNotWritten as error:
            log.warning("%s", error.message)
