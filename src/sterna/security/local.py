"""Who is at the other end of a Unix socket: the kernel knows.

The credentials are those of the process when it connected: root, or the user that sternad itself
runs as, is an admin; the members of one group have the role that the configuration gives them.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

from sterna.config import Config
from sterna.errors import BadConfig
from sterna.model.access import Principal, Role

DEFAULT_GROUP = "sterna"  # if there is one
_SO_PEERGROUPS = 59  # Linux 4.13; Python has no name for it
_UCRED = struct.Struct("3i")
_MAX_GROUPS = 256  # Python gives no more room


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of a process; `groups` with its primary one."""

    pid: int
    uid: int
    groups: frozenset[int]


def credentials(sock: socket.socket) -> Credentials | None:
    """Of who has connected `sock`; None if it is no Unix socket."""
    if sock.family != socket.AF_UNIX:
        return None
    pid, uid, gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    try:
        more = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:  # more groups than that: the primary one must do
        more = b""
    return Credentials(
        pid, uid, frozenset({gid, *(one for (one,) in struct.iter_unpack("I", more))})
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Locals:
    """Who may use the socket. `gid`: of the group, None: root alone."""

    gid: int | None = None
    role: Role = Role.MIGRATOR

    def who(self, found: Credentials) -> Principal | None:
        """None: nobody who may."""
        if found.uid in (0, os.geteuid()):
            role = Role.ADMIN
        elif self.gid is not None and self.gid in found.groups:
            role = self.role
        else:
            return None
        return Principal(kind="local", name=_name(found.uid), role=role, key=str(found.uid))


def of(config: Config) -> Locals:
    """As the configuration says. Raises BadConfig for a group that is not there."""
    wanted = config.access.group
    if wanted == "":
        return Locals()
    try:
        gid = grp.getgrnam(wanted or DEFAULT_GROUP).gr_gid
    except KeyError as error:
        if wanted is None:
            return Locals()
        raise BadConfig(
            path="[access] group", reason=f"there is no group called {wanted}"
        ) from error
    return Locals(gid=gid, role=Role(config.access.group_role))


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
