"""What bridges have learned: forgetting where a MAC address was.

Promises to be quick, because a guest stands still meanwhile: two netlink messages (rtnetlink(7),
about a tenth of a millisecond) where `bridge fdb` would be two processes. Never touches entries
that an administrator made.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from sterna.errors import NetworkFailed

# linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_ERROR, _DONE = 2, 3
_DELNEIGH, _GETNEIGH = 29, 30
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_LLADDR, _VLAN, _MASTER = 2, 5, 9
_NTF_MASTER = 0x04
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ENTRY = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_BUFFER = 1 << 16  # bytes; the kernel fills at most 32 KiB at a time


def forget(bridge: str, mac: str) -> int:
    """Drop the entries that `bridge` learned for `mac`; how many there were.

    Blocks for as long as the kernel's network lock is held. Raises NetworkFailed.
    """
    address = bytes.fromhex(mac.replace(":", ""))
    try:
        index = socket.if_nametoindex(bridge)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            link.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)  # so that the dump is filtered
            learned = [entry for entry in _dump(link, index) if entry[2] == address]
            return sum(_delete(link, *entry) for entry in learned)
    except OSError as error:
        action = f"make bridge {bridge} forget {mac}"
        raise NetworkFailed(action=action, reason=error.strerror) from error


def _dump(link: socket.socket, bridge: int) -> Iterator[tuple[int, int, bytes]]:
    """(port, VLAN or 0, address) of each learned entry."""
    body = _ENTRY.pack(socket.AF_BRIDGE, 0, 0, 0, 0) + _pack(_MASTER, struct.pack("=I", bridge))
    link.send(_message(_GETNEIGH, _REQUEST | _DUMP, body))
    for kind, answer in _answers(link):
        if kind != _GETNEIGH - 2:  # RTM_NEWNEIGH
            continue
        _, port, state, _, _ = _ENTRY.unpack_from(answer)
        found = dict(_unpack(answer[_ENTRY.size :]))
        if not state & (_NUD_PERMANENT | _NUD_NOARP) and _MASTER in found:
            vlan = struct.unpack("=H", found[_VLAN])[0] if _VLAN in found else 0
            yield port, vlan, found[_LLADDR]


def _delete(link: socket.socket, port: int, vlan: int, address: bytes) -> bool:
    body = _ENTRY.pack(socket.AF_BRIDGE, port, 0, _NTF_MASTER, 0) + _pack(_LLADDR, address)
    if vlan:
        body += _pack(_VLAN, struct.pack("=H", vlan))
    link.send(_message(_DELNEIGH, _REQUEST | _ACK, body))
    try:
        for _ in _answers(link):
            pass
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):  # it aged, or its port is gone
            return False
        raise
    return True


def _answers(link: socket.socket) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each answer, to the last one. Raises the OSError that the kernel reports."""
    while True:
        data = link.recv(_BUFFER)
        while data:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return
            yield kind, body


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _pack(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _unpack(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(max(length, _ATTRIBUTE.size) + 3) & ~3 :]
