"""A QEMU as a process: started so that it outlives us, found again after we have restarted.

Promises: a QEMU runs in a session of its own with no terminal, and ends neither with the daemon
nor by its signals; a pid is never mistaken for another process that got the same number; no zombie
stays. Never ends a QEMU unless `terminate` or `kill` is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sterna.errors import QEMUMissing
from sterna.model.vm import QEMUProcess

LOG_TAIL_BYTES = 16 << 10  # QEMU's words are short; a log of gigabytes must not be read whole
# Python ignores these, and a child would inherit that; QEMU shall have the defaults.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)


async def spawn(argv: Sequence[str], *, log: Path, fds: Sequence[int] = ()) -> Process:
    """Start `argv`; its output goes to `log` (appended), `fds` keep their numbers in it.

    asyncio's own subprocesses are killed when the event loop closes; these are not.
    Raises QEMUMissing if it cannot be started.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds),  # to itself: open in the child too
    ]
    try:
        pid = os.posix_spawnp(  # noqa: ASYNC221 - milliseconds, and never a half-known child
            argv[0],
            list(argv),
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    except OSError as error:
        raise QEMUMissing(path=argv[0], reason=error.strerror or str(error)) from error
    return Process(pid, os.pidfd_open(pid), log)


class Process:
    """One process, by its pidfd. Made by `spawn` and `adopt`, inside a running event loop."""

    def __init__(self, pid: int, pidfd: int, log: Path | None = None) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._log = log
        self._start_ticks = _start_ticks(pid) or 0
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_end)

    @classmethod
    def adopt(cls, identity: QEMUProcess, log: Path | None = None) -> Process | None:
        """The process that `identity` names, if it still lives."""
        if identity.boot_id != boot_id():
            return None
        try:
            pidfd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        # After the open: from here on the number cannot be given to another process unnoticed.
        if _start_ticks(identity.pid) != identity.start_ticks or _has_ended(pidfd):
            os.close(pidfd)
            return None
        return cls(identity.pid, pidfd, log)

    def identity(self, accel: Literal["kvm", "tcg"]) -> QEMUProcess:
        """What to write down, to `adopt` it later."""
        return QEMUProcess(
            pid=self.pid, start_ticks=self._start_ticks, boot_id=boot_id(), accel=accel
        )

    @property
    def is_alive(self) -> bool:
        return not self._ended.done() and not _has_ended(self._pidfd)

    async def wait(self) -> int | None:
        """Returns when it has ended: its exit status (negative: the signal), None if not our child."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """SIGTERM: QEMU flushes its disks and ends."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: it ends at once, whatever it was doing."""
        self._send(signal.SIGKILL)

    def log_tail(self, lines: int = 20) -> str:
        """The last `lines` of its log; empty if it said nothing or has no known log."""
        if self._log is None:
            return ""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - LOG_TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _send(self, number: signal.Signals) -> None:
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _on_end(self) -> None:
        """The pidfd became readable: it has ended; if it is our child, reap it."""
        status: int | None = None
        with contextlib.suppress(ChildProcessError):
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if result is not None:
                exited = result.si_code == os.CLD_EXITED
                status = result.si_status if exited else -result.si_status
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(status)


def find(folder: Path) -> dict[int, str]:
    """QEMUs whose sockets are in a folder below `folder`: pid -> the name of that folder.

    Found by their command lines, so also those that have only just been started.
    """
    found = {}
    marker = f"path={folder}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                words = (entry / "cmdline").read_bytes().split(b"\0")
                below = [word.split(marker, 1)[1] for word in words if marker in word]
                if below and b"-nodefaults" in words:
                    found[int(entry.name)] = below[0].split(b"/", 1)[0].decode(errors="replace")
    return found


def boot_id() -> str:
    """Names this boot of this host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    """When `pid` started, in ticks since boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22; the name may hold spaces


def _has_ended(pidfd: int) -> bool:
    """Ended, a zombie included."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
