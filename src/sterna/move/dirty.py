"""How fast a guest changes its memory, measured before it moves.

By page sampling only: QEMU 7.2 crashes under emulation with the other ways. What it finds is a
lower bound: pages that were changed at all in the window, however often.
"""

from __future__ import annotations

import asyncio
import contextlib

from sterna import clock
from sterna.errors import QMPError
from sterna.qemu.commands import Monitor

WINDOW_S = 1  # the shortest that QEMU 7.2 knows
LOOK_S = 0.05
LATE_S = 3.0  # after the window, for a QEMU on a busy host


async def measure(qmp: Monitor, seconds: int = WINDOW_S) -> int | None:
    """Bytes/s, after `seconds` and a moment; None if QEMU does not tell. Disturbs no guest.

    Meant to run beside what a move does before its memory travels. Raises QMPTimeout, QEMULost.
    """
    with contextlib.suppress(QMPError, TimeoutError):  # somebody else measures: theirs is as good
        async with asyncio.timeout(seconds + LATE_S):
            with contextlib.suppress(QMPError):
                await qmp.calc_dirty_rate(seconds)
            while (found := await qmp.query_dirty_rate()).is_measuring:  # noqa: ASYNC110 - no event
                await asyncio.sleep(LOOK_S)
            return found.bytes_per_s
    return None


class Pace:
    """The same beside something that looks again and again: `look` never waits for the window.

    Begun with the first round, when nothing slows the guest down yet.
    """

    def __init__(self, qmp: Monitor) -> None:
        self.rate: int | None = None  # bytes/s
        self._qmp = qmp
        self._asked_at: float | None = None
        self._has_ended = False

    async def look(self) -> None:
        """Begin, or see whether it is known now. Raises QMPTimeout, QEMULost."""
        if self._has_ended:
            return
        try:
            if self._asked_at is None:
                self._asked_at = clock.monotonic()
                await self._qmp.calc_dirty_rate(WINDOW_S)
            elif clock.monotonic() - self._asked_at > WINDOW_S:
                found = await self._qmp.query_dirty_rate()
                self.rate = found.bytes_per_s
                self._has_ended = not found.is_measuring
        except QMPError:  # then without
            self._has_ended = True
