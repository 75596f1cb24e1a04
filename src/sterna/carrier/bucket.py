"""A limit in bytes a second, kept smoothly: what is over is paid back before more goes."""

from __future__ import annotations

_BURST_S = 0.04  # what was not used, because threads woke late, is made good for so long


class Bucket:
    """Not thread-safe. Times are those of one monotonic clock, in seconds."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._level = 0.0  # bytes that may go at once; below 0 is debt
        self._when = 0.0
        self.waits = 0  # how often somebody was told to wait

    @property
    def rate(self) -> int | None:
        return self._rate

    def set_rate(self, rate: int | None, now: float) -> None:
        """Debts of the old rate are forgiven beyond what the new one pays in a moment."""
        self._fill(now)
        self._rate = rate
        if rate is not None:
            self._level = max(self._level, -rate * _BURST_S)

    def delay(self, now: float) -> float:
        """Seconds until more may go; 0: now."""
        if self._rate is None:
            return 0.0
        self._fill(now)
        if self._level > 0:
            return 0.0
        self.waits += 1
        return max(1e-4, -self._level / self._rate)

    def charge(self, size: float) -> None:
        """Bytes that go, or (below 0) that were charged and did not go."""
        if self._rate is not None:
            self._level = min(self._level - size, self._rate * _BURST_S)

    def _fill(self, now: float) -> None:
        if self._rate is not None:
            self._level = min(self._level + (now - self._when) * self._rate, self._rate * _BURST_S)
        self._when = now
