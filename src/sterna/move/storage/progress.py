"""How far a move of disks within a host is: files and mirrors together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sterna import clock
from sterna.model.move import DiskProgress, Phase
from sterna.operations.runner import Job

RATE_SAMPLES = 12  # three seconds: short enough to be now, long enough to stand still for


@dataclass(slots=True)
class _Part:
    """One file, or the mirror of one disk."""

    disk: str  # empty: memory
    total: int
    done: int = 0
    is_through: asyncio.Event = field(default_factory=asyncio.Event)
    seconds: float = 0.0


class Progress:
    """Parts are known by name before any of them begins, so that the sum is honest."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._parts: dict[str, _Part] = {}
        self._began = clock.monotonic()
        self._seen: deque[tuple[float, int]] = deque(maxlen=RATE_SAMPLES)

    def expect(self, name: str, disk: str, total: int) -> None:
        """A part of `total` bytes, holes included."""
        self._parts[name] = _Part(disk=disk, total=total)

    def counter(self, name: str) -> Callable[[int], None]:
        """For another thread: so many bytes more of that part are dealt with."""
        part = self._parts[name]

        def count(length: int) -> None:
            part.done += length

        return count

    def mirrored(self, name: str, done: int, total: int, *, is_ready: bool) -> None:
        """What QEMU says of a mirror."""
        part = self._parts[name]
        part.done, part.total = done, total
        if is_ready:
            self.through(name)

    def through(self, name: str) -> None:
        """That part is complete; a mirror keeps step with the guest."""
        part = self._parts[name]
        if not part.is_through.is_set():
            part.done = max(part.done, part.total)
            part.seconds = round(clock.monotonic() - self._began, 3)
            part.is_through.set()

    async def wait(self, name: str) -> None:
        """Until that part is through; at once if it is none."""
        if name in self._parts:
            await self._parts[name].is_through.wait()

    @property
    def done(self) -> int:
        return sum(part.done for part in self._parts.values())

    def disks(self) -> Mapping[str, tuple[int, float]]:
        """By disk: bytes, and seconds until the last part of it was through."""
        names = {part.disk: None for part in self._parts.values() if part.disk}
        return {
            name: (
                sum(part.done for part in self._parts.values() if part.disk == name),
                max(part.seconds for part in self._parts.values() if part.disk == name),
            )
            for name in names
        }

    def show(self) -> None:
        """One sample, for whoever follows the operation."""
        total = sum(part.total for part in self._parts.values())
        now, done = clock.monotonic(), min(self.done, total)
        self._seen.append((now, done))
        (then, before), (last, after) = self._seen[0], self._seen[-1]
        self._job.sample(
            DiskProgress(
                time_s=round(self._job.elapsed, 3),
                phase=Phase.DISKS,
                transferred=done,
                remaining=total - done,
                total=total,
                rate=round(max(0, after - before) / (last - then)) if last > then else 0.0,
                disks={disk: self._share(disk) for disk in self.disks()},
            )
        )

    def _share(self, disk: str) -> float:
        parts = [part for part in self._parts.values() if part.disk == disk]
        total = sum(part.total for part in parts)
        return round(min(1.0, sum(part.done for part in parts) / total), 4) if total else 0.0
