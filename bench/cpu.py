"""CPU time that a move costs its hosts: all their processes, without what the guest itself runs.

Unlike durations it tells something on a busy machine too.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from sterna.lab import netns, processes
from sterna.lab.hosts import Host

PERIOD_S = 0.25  # a process that ends is missed by at most so much
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Cost:
    """Seconds of CPU that processes of these hosts take while the block runs, in `seconds`."""

    def __init__(self, hosts: list[Host]) -> None:
        self._inodes = {inode for host in hosts if (inode := netns.inode(host.netns))}
        self._last: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._first = self._look()
        self._last = dict(self._first)
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        self._thread.join()
        self._last |= self._look()

    @property
    def seconds(self) -> float:
        return round(sum(self._last.values()) - sum(self._first.values()), 2)

    def _watch(self) -> None:
        while not self._ends.wait(PERIOD_S):
            self._last |= self._look()

    def _look(self) -> dict[int, float]:
        found = {}
        for process in processes.in_namespaces(self._inodes):
            with contextlib.suppress(OSError):
                found[process.pid] = _used(process.pid)
        return found


def _used(pid: int) -> float:
    """Seconds of a process but for its vCPU threads, which QEMU names `CPU n/…`."""
    place = Path(f"/proc/{pid}")
    guests = sum(
        _seconds((thread.parent / "stat").read_text())
        for thread in place.glob("task/*/comm")
        if thread.read_text().startswith("CPU ")
    )
    return _seconds((place / "stat").read_text()) - guests


def _seconds(stat: str) -> float:
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
