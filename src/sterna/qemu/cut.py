"""The last way to a QEMU whose main loop hangs on a connection: cut the connection from outside.

`yank` needs a session that was there before the hang: a new one is not let in, for QEMU greets out
of band but takes `qmp_capabilities` only in its main loop (seen with 7.2). So a daemon that was
restarted in that moment takes the file descriptor itself.

Promises: only connected TCP sockets are shut down (a migration's; consoles, monitors and the
guest's network are none), the process itself is not touched. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path

_PIDFD_GETFD = 438  # Linux 5.6, the same number on every architecture


def cut_connections(pid: int) -> int:
    """Shut down the TCP connections of `pid`; how many there were. One that has ended has none."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        return sum(_cut(pidfd, int(link.name)) for link in _sockets(pid))
    finally:
        os.close(pidfd)


def _sockets(pid: int) -> list[Path]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(link.readlink()).startswith("socket:"):
                    found.append(link)
    return found


def _cut(pidfd: int, number: int) -> bool:
    """Shut down file descriptor `number` of another process if it is a TCP connection."""
    ours = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, number, 0)
    if ours < 0:
        return False  # closed meanwhile, or not allowed: then nothing is cut, and the count says so
    with socket.socket(fileno=ours) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        if connection.type != socket.SOCK_STREAM:
            return False
        try:
            connection.getpeername()
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # it listens, or has ended
            return False
    return True
