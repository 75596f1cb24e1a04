"""What Linux knows about a TCP connection (`struct tcp_info` of linux/tcp.h, 4.19 and later)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

HEADERS = 66  # bytes of a packet: Ethernet 14, IPv4 20, TCP 20 and its time stamps 12
IPV6_MORE = 20
_SIZE = 208  # up to tcpi_bytes_sent

# backoff at 4, rtt at 68, bytes_received at 128, segs_out, segs_in, notsent_bytes, min_rtt,
# delivery_rate at 160, bytes_sent at 200
_FIELDS = struct.Struct("=4xB63xI56xQIIII8xQ32xQ")


class TcpInfo(NamedTuple):
    backoff: int  # times that the retransmission timer has doubled; 0: all is well
    rtt_us: int
    bytes_in: int
    segments_out: int
    segments_in: int
    unsent: int  # bytes that wait in the socket
    min_rtt_us: int
    delivery_rate: int  # bytes a second, of the last sample
    bytes_out: int  # TCP payload handed to IP; what was sent again is counted again


def read(sock: socket.socket) -> TcpInfo:
    """Raises OSError if the socket is closed."""
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    return TcpInfo._make(_FIELDS.unpack(data))
