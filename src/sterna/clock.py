"""Time: wall clock for people, monotonic for durations. The one place that reads either."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


def now() -> str:
    """The wall clock as RFC 3339 in UTC with milliseconds, the form stored and sent."""
    return later(0)


def later(seconds: float) -> str:
    """The wall clock as it will be in so many seconds, written as `now`; such texts sort by time."""
    when = datetime.now(UTC) + timedelta(seconds=seconds)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def monotonic() -> float:
    """Seconds of a clock that never jumps; comparable only within one boot of one host."""
    return time.monotonic()
