"""The serial console of a VM in this terminal: raw in, raw out, Ctrl-] leaves.

The terminal is always given back as it was found. Works on the host that runs the VM: the console
is a Unix socket there.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from typing import Any

from sterna.cli.output import note
from sterna.client import Client, segment
from sterna.errors import DaemonUnreachable, NotAllowed, NotFound, SternaError, VMWrongState

LEAVE = b"\x1d"  # Ctrl-]
CHUNK = 4096
CONNECT_S = 5.0


def attach(client: Client, name: str) -> None:
    """Connect this terminal to the console of `name` until Ctrl-] or until the console ends.

    Raises VMWrongState if the VM has no console now, NotAllowed if it cannot be reached from here.
    """
    path = f"/v1/vms/{segment(name)}"
    view = client.get(path)
    console = str(view.get("console") or "")
    if not console or not view.get("process"):
        raise VMWrongState(
            action="open the console of",
            vm=name,
            state=view["state"],
            fix=f"Start it with: sterna vm start {name}",
        )
    if not client.is_local:
        raise NotAllowed(
            what=f"the console of {name} from here",
            reason=f"it is a socket on host {view.get('host')}",
            fix=f"Run there: sterna vm console {name}",
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NotAllowed(
            what="the console without a terminal",
            reason="its input or output is redirected",
            fix=f"A program connects to the socket itself: {console}",
        )
    with _connect(console, name) as sock:
        ended = _relay(sock, f"connected to the console of {name}; Ctrl-] leaves")
    note(_why(client, path, name) if ended else f"left the console of {name}; it goes on")


def _connect(path: str, name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_S)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise NotAllowed(
                what=f"the console of {name}",
                reason=f"permission denied on {path}",
                fix="Run the command with sudo",
            ) from error
        reason = "somebody else is connected" if isinstance(error, TimeoutError) else error.strerror
        raise DaemonUnreachable(url=path, reason=reason or str(error)) from error
    sock.settimeout(None)
    return sock


def _relay(sock: socket.socket, greeting: str) -> bool:
    """Greet and copy both ways; True if the console ended, False if the user left."""
    terminal, output = sys.stdin.fileno(), sys.stdout.fileno()
    before: list[Any] = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)  # what was typed already is for the guest
        _write_all(output, f"{greeting}\r\n".encode())
        while True:
            ready, _, _ = select.select([terminal, sock], [], [])
            if sock in ready:
                data = _receive(sock)
                if not data:
                    return True
                _write_all(output, data)
            if terminal in ready:
                typed = os.read(terminal, CHUNK)
                before_leave, leave, _ = typed.partition(LEAVE)
                if before_leave and not _send(sock, before_leave):
                    return True
                if leave or not typed:
                    return False
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        _write_all(output, b"\n")


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(CHUNK)
    except ConnectionError:
        return b""


def _send(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except OSError:
        return False
    return True


def _write_all(output: int, data: bytes) -> None:
    while data:
        data = data[os.write(output, data) :]


def _why(client: Client, path: str, name: str) -> str:
    """Why a console ended by itself, as far as the daemon knows."""
    try:
        view = client.get(path)
    except NotFound:
        return f"the console ended: {name} is no longer on this host"
    except SternaError as error:
        return f"the console ended: {error.message}"
    host = f", now on {view['host']}" if view.get("host") else ""
    return f"the console ended: {name} is {view['state']}{host}"
