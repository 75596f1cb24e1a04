"""A wire with a delay, for kernels without netem: frames wait in this process.

    python slow_wire.py SECONDS INTERFACE INTERFACE

What comes from one interface leaves by the other so much later. Both must have large packets and
no offloads: see `without_offloads`.
"""

import contextlib
import fcntl
import heapq
import itertools
import select
import socket
import struct
import sys
import time

_ETH_P_ALL = 3
_SIOCETHTOOL = 0x8946
_OFF = (0x17, 0x1F, 0x24, 0x2C)  # ETHTOOL_STXCSUM, STSO, SGSO, SGRO of linux/ethtool.h
LARGEST = 65_000  # bytes of a packet: few of them, so that Python keeps up


def without_offloads(interface: str) -> None:
    """The kernel computes checksums and cuts packets itself: they must be whole in between."""
    import ctypes  # noqa: PLC0415 - this is all that needs it

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in _OFF:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            fcntl.ioctl(sock, _SIOCETHTOOL, request.ljust(40, b"\0"))


def carry(seconds: float, names: list[str]) -> None:
    ends = []
    for name in names:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        end.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        end.bind((name, 0))
        end.setblocking(False)
        ends.append(end)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    count = itertools.count()
    print("ready", flush=True)
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], timeout)[0]:
            for _ in range(16):
                try:
                    data, address = end.recvfrom(LARGEST + 100)
                except BlockingIOError:
                    break
                if address[2] != socket.PACKET_OUTGOING:
                    due = time.monotonic() + seconds
                    heapq.heappush(waiting, (due, next(count), other[end], data))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, end, data = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # as on a wire: it is lost
                end.send(data)


if __name__ == "__main__":
    if sys.argv[1] == "off":
        without_offloads(sys.argv[2])
    else:
        carry(float(sys.argv[1]), sys.argv[2:])
