"""The TCP sockets of a QEMU, looked at and cut from outside.

Cutting is the last way to a QEMU whose main loop hangs on a connection: `yank` needs a session that was there before the hang: a new one is not let in, for QEMU greets out
of band but takes `qmp_capabilities` only in its main loop (seen with 7.2). So a daemon that was
restarted in that moment takes the file descriptor itself.

Looking tells on which port its NBD server listens and what has been on the wire: neither can QEMU
be asked.

Promises: only connected TCP sockets, and those about to be, are shut down (a migration's; consoles, monitors and the
guest's network are none), the process itself is not touched. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

_TCP_INFO_BYTES = 256  # struct tcp_info of linux/tcp.h, which only grows at its end
_BYTES_ACKED = 120  # offset of tcpi_bytes_acked (RFC 4898), Linux 4.2
_CONNECTING, _LISTENING, _CLOSED = 2, 10, 7  # tcpi_state: of linux/tcp_states.h
_PIDFD_GETFD = 438  # Linux 5.6, the same number on every architecture


def cut_connections(pid: int, *, are_connecting: bool = False) -> int:
    """Shut down the TCP connections of `pid`; how many there were. One that has ended has none.

    `are_connecting`: only those whose other side has not answered yet. QEMU's `migrate_cancel`, and
    even `yank`, wait for these as long as the kernel tries, which is two minutes.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        return sum(_cut(pidfd, int(link.name), are_connecting) for link in _sockets(pid))
    finally:
        os.close(pidfd)


def cut_path(pid: int, path: str) -> int:
    """Shut down the connections of `pid` to the Unix socket `path`; how many there were.

    For an NBD client that negotiates: `yank` knows it only afterwards, and QEMU's main loop waits.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        return sum(_cut_path(pidfd, int(link.name), path) for link in _sockets(pid))
    finally:
        os.close(pidfd)


def listening_ports(pid: int) -> frozenset[int]:
    """The TCP ports on which `pid` listens; none for one that has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return frozenset()
    try:
        ports = {_listens(pidfd, int(link.name)) for link in _sockets(pid)}
    finally:
        os.close(pidfd)
    return frozenset(ports - {0})


def sent_bytes(pid: int, ports: frozenset[int]) -> int:
    """Bytes that `pid` has sent, and the other side acknowledged, on its connections to `ports`."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        return sum(_sent(pidfd, int(link.name), ports) for link in _sockets(pid))
    finally:
        os.close(pidfd)


def _sent(pidfd: int, number: int, ports: frozenset[int]) -> int:
    """Acknowledged on that descriptor, if it is connected to one of `ports`."""
    found = _taken(pidfd, number)
    if found is None:
        return 0
    with found:
        try:
            if found.getpeername()[1] not in ports:
                return 0
        except OSError:  # it listens, or has ended
            return 0
        facts = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    acknowledged: int = struct.unpack_from("Q", facts, _BYTES_ACKED)[0]
    return acknowledged


def _sockets(pid: int) -> list[Path]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(link.readlink()).startswith("socket:"):
                    found.append(link)
    return found


def _cut_path(pidfd: int, number: int, path: str) -> bool:
    found = _socket(pidfd, number)
    if found is None:
        return False
    with found:
        try:
            if found.family != socket.AF_UNIX or found.getpeername() != path:
                return False
            found.shutdown(socket.SHUT_RDWR)
        except OSError:  # it listens, or has ended
            return False
    return True


def _socket(pidfd: int, number: int) -> socket.socket | None:
    """File descriptor `number` of another process, which is a socket, as our own."""
    ours = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, number, 0)
    return None if ours < 0 else socket.socket(fileno=ours)  # closed meanwhile, or not allowed


def _taken(pidfd: int, number: int) -> socket.socket | None:
    """File descriptor `number` of another process, as our own, if it is a TCP socket."""
    found = _socket(pidfd, number)
    if found is None:
        return None
    is_tcp = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
    if not is_tcp:
        found.close()
        return None
    return found


def _listens(pidfd: int, number: int) -> int:
    """The port on which that descriptor listens; 0 if it does not."""
    found = _taken(pidfd, number)
    if found is None:
        return 0
    with found:
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return 0
        return int(found.getsockname()[1])


def _cut(pidfd: int, number: int, are_connecting: bool) -> bool:
    """Shut that descriptor down if it is a TCP connection, or is about to be one."""
    found = _taken(pidfd, number)
    if found is None:
        return False
    with found:
        try:
            state = found.getsockopt(socket.SOL_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)[0]
            if state in (_LISTENING, _CLOSED) or (are_connecting and state != _CONNECTING):
                return False
            found.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended
            return False
    return True
