"""Is anybody at that address? An ICMP echo (RFC 792, RFC 4443), as ping(8) sends it."""

from __future__ import annotations

import os
import socket
import struct

from sterna.clock import monotonic

_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence


def answers(address: str, seconds: float) -> bool:
    """Whether it answers in time. False, too, where we may not ask: that takes root."""
    is_six = ":" in address
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        if is_six
        else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    asks, replies = (128, 129) if is_six else (8, 0)
    mine = int.from_bytes(os.urandom(2))
    request = _ECHO.pack(asks, 0, 0, mine, 1)
    if not is_six:  # of version 6 the kernel fills it in
        request = _ECHO.pack(asks, 0, checksum(request), mine, 1)
    deadline = monotonic() + seconds
    try:
        with socket.socket(family, socket.SOCK_RAW, protocol) as link:
            link.sendto(request, (address, 0))
            while (left := deadline - monotonic()) > 0:
                link.settimeout(left)
                data, sender = link.recvfrom(1024)
                body = data if is_six else data[(data[0] & 0xF) * 4 :]
                if len(body) < _ECHO.size or sender[0] != address:
                    continue
                kind, _, _, identifier, _ = _ECHO.unpack_from(body)
                if (kind, identifier) == (replies, mine):
                    return True
    except OSError:
        pass
    return False


def checksum(data: bytes) -> int:
    """The internet's (RFC 1071), of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
