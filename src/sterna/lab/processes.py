"""Processes that outlive the command that started them, and how to end exactly those.

Promises never to signal a process that is not meant: a pid alone proves nothing, so a process is
known by (boot, pid, start time), checked again while a pidfd holds the pid.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from sterna.clock import monotonic
from sterna.qemu.process import boot_id

_PROC = Path("/proc")
_START_TIME = 19  # field 22 of /proc/PID/stat, counted after the name's closing bracket
_STATE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process for all time. Written to disk as it stands."""

    pid: int
    start_ticks: int
    boot_id: str

    @property
    def is_alive(self) -> bool:
        """It runs; a zombie does not."""
        return _start_ticks(self.pid) == self.start_ticks and boot_id() == self.boot_id

    def signal(self, number: signal.Signals) -> bool:
        """Send it; False if the process has ended, in which case nobody gets the signal."""
        with contextlib.suppress(ProcessLookupError), _pidfd(self.pid) as fd:
            if self.is_alive:
                signal.pidfd_send_signal(fd, number)
                return True
        return False

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until it has ended; False if it still runs after that time."""
        with contextlib.suppress(ProcessLookupError), _pidfd(self.pid) as fd:
            if self.is_alive:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                return bool(poll.poll(timeout_s * 1000))
        return True


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None if there is none, or it has ended."""
    ticks = _start_ticks(pid)
    return None if ticks is None else Process(pid=pid, start_ticks=ticks, boot_id=boot_id())


def command(pid: int) -> list[str]:
    """The words it was started with; none if it has ended."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def in_namespaces(inodes: set[int]) -> list[Process]:
    """The processes whose network namespace is one of these (inodes of nsfs)."""
    found = []
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and network_namespace(int(folder.name)) in inodes:
            process = identify(int(folder.name))
            # Looked at twice: the pid may have changed hands between the two lines above.
            if process and network_namespace(process.pid) in inodes and process.is_alive:
                found.append(process)
    return found


def network_namespace(pid: int) -> int | None:
    """Inode of the process's network namespace; None if it has ended."""
    try:
        return (_PROC / str(pid) / "ns/net").stat().st_ino
    except OSError:
        return None


def end(processes: list[Process], grace_s: float) -> list[Process]:
    """Ask them to end, wait up to `grace_s` for all, kill the rest. Returns what even so remains."""
    for process in processes:
        process.signal(signal.SIGTERM)
    deadline = monotonic() + grace_s
    rest = [p for p in processes if not p.wait_ended(max(0.0, deadline - monotonic()))]
    for process in rest:
        process.signal(signal.SIGKILL)
    return [p for p in rest if not p.wait_ended(10.0)]  # a killed QEMU frees GiBs of memory first


def _start_ticks(pid: int) -> int | None:
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[_STATE] in "ZX" else int(fields[_START_TIME])


class _pidfd(contextlib.AbstractContextManager[int]):  # noqa: N801 - reads as the call it wraps
    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
