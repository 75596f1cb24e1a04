"""What this machine has: processors and memory, read from the kernel each time it is asked.

Never guesses: MemAvailable is the kernel's own estimate of what new work may take. Caches nothing
but the processors' times of a moment ago, to tell what they did since.
"""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path
from typing import NamedTuple

_MEMINFO = Path("/proc/meminfo")
_STAT = Path("/proc/stat")
PERIOD_S = 1.0  # over which processors are watched


class Memory(NamedTuple):
    """Bytes."""

    total: int
    available: int  # without swapping, caches given up


def memory() -> Memory:
    """The machine's memory now."""
    return parse_meminfo(_MEMINFO.read_text())


def parse_meminfo(text: str) -> Memory:
    """`/proc/meminfo` (proc(5)); its "kB" are KiB."""
    fields = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            fields[key] = int(rest.split()[0]) << 10
    return Memory(fields["MemTotal"], fields["MemAvailable"])


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


class Times(NamedTuple):
    """Of all processors together, in ticks of the kernel."""

    idle: int
    total: int


class Idleness:
    """How many processors have had nothing to do lately. `watch` in a task."""

    def __init__(self) -> None:
        self.cpus: float | None = None

    async def watch(self) -> None:
        """Look every PERIOD_S, until cancelled."""
        before = _times()
        while True:
            await asyncio.sleep(PERIOD_S)
            now = _times()
            if now.total > before.total:
                share = (now.idle - before.idle) / (now.total - before.total)
                self.cpus = round(max(0.0, share) * cpus(), 2)
            before = now


def _times() -> Times:
    return cpu_times(_STAT.read_text())


def cpu_times(text: str) -> Times:
    """`/proc/stat` (proc(5)). Waiting for disks counts as idle."""
    numbers = [int(word) for word in text.splitlines()[0].split()[1:9]]
    return Times(numbers[3] + numbers[4], sum(numbers))


def file_limit() -> int | None:
    """Bytes that a file of ours and of our children may have (getrlimit(2)); None: no limit.

    QEMU inherits it, and its guest's memory is a file, too (memfd_create(2)).
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft
