"""Taps: the ends of the cables by which VMs are plugged into bridges.

Promises: a tap vanishes with the last process that holds its descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import struct

from sterna.clock import monotonic
from sterna.errors import NetworkFailed

TAP_INDEXES = 100  # two digits in 15 characters

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_BUSY_S = (
    2.0  # a tap of that name may still be closing, or be held by a child between fork and exec
)
_BUSY_POLL_S = 0.02


def tap_name(vm_id: str, index: int) -> str:
    """The tap of NIC number `index`: the same on each start, 15 characters at most."""
    if not 0 <= index < TAP_INDEXES:
        raise ValueError(f"a VM has no NIC number {index}")
    return f"st{digest(vm_id, 10)}n{index}"


def digest(text: str, length: int) -> str:
    """The first `length` hexadecimal digits of its hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


async def open_tap(name: str) -> int:
    """A new non-persistent tap as QEMU wants it: no packet information, virtio-net headers."""
    request = struct.pack(
        "16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    )
    deadline = monotonic() + _BUSY_S
    while True:
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkFailed(action="open /dev/net/tun", reason=error.strerror) from error
        try:
            fcntl.ioctl(fd, _TUNSETIFF, request)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY or monotonic() > deadline:
                raise NetworkFailed(action=f"make tap {name}", reason=error.strerror) from error
        else:
            return fd
        await asyncio.sleep(_BUSY_POLL_S)
