"""Programs that a test runs inside a namespace of the lab: pings of a size, and eyes on a wire.

python wire_watch.py ping ADDRESS BYTES     whether an ICMP echo with so large a packet comes back
python wire_watch.py watch TEXT             how often TEXT goes by, in clear, until SIGTERM; beside it,
                                            how many bytes did
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time

from sterna.host.ping import checksum

HEADERS = 28  # of IPv4 and ICMP
ETH_P_ALL = 3
WAIT_S = 2.0
_DO_NOT_FRAGMENT = 2
_IP_MTU_DISCOVER = 10


def ping(address: str, size: int) -> bool:
    echo = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + bytes(size - HEADERS)
    echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
    ends = time.monotonic() + WAIT_S
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        link.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO_NOT_FRAGMENT)
        link.sendto(echo, (address, 0))
        while (left := ends - time.monotonic()) > 0:
            link.settimeout(left)
            try:
                data, sender = link.recvfrom(65536)
            except TimeoutError:
                return False
            if sender[0] == address and data[20] == 0 and len(data) == size:
                return True
    return False


def watch(text: bytes) -> None:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
    link.settimeout(0.1)
    is_over = False

    def stop(*_: object) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGTERM, stop)
    print("watching", flush=True)
    found = seen = 0
    while not is_over:
        try:
            data = link.recv(1 << 17)
        except TimeoutError:
            continue
        seen += len(data)
        found += data.count(text)
    print(found, seen, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "ping":
        sys.exit(not ping(sys.argv[2], int(sys.argv[3])))
    watch(os.fsencode(sys.argv[2]))
