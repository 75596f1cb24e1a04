"""What this machine has: processors and memory, read from the kernel each time it is asked.

Never caches, never guesses: MemAvailable is the kernel's own estimate of what new work may take.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_MEMINFO = Path("/proc/meminfo")


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
