"""How fast is the link to another host? Asked of TCP itself, in a tenth of a second.

The target listens on its migration address for one connection that knows a single-use token, and
throws away what comes. Promises: bounded in time, memory and number on both sides; nothing of a
guest is sent; a link that cannot be measured is None and never an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import Coroutine
from typing import Any

from sterna import clock
from sterna.errors import SternaError
from sterna.model.reservation import Probe
from sterna.move.peer import Peer

WARM_S = 0.02  # TCP's slow start, and what the queues on the way swallow at once
MEASURE_S = 0.08
OPEN_S = 3.0  # a source comes at once or never
MAX_OPEN = 4  # at a time
CONNECT_S = 1.0
TOKEN_BYTES = 16
PIECE = 256 << 10
_TCP_INFO_BYTES = 256
_BYTES_ACKED = 120  # struct tcp_info of linux/tcp.h

log = logging.getLogger(__name__)


class Probes:
    """The target's side: what sources may send to for a moment."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._open = 0

    async def open(self) -> tuple[Probe | None, Coroutine[Any, Any, None] | None]:
        """Where to send to, and the work that must be run to receive it. None: not now."""
        if not self._address or self._open >= MAX_OPEN:
            return None, None
        token = secrets.token_bytes(TOKEN_BYTES)
        came = asyncio.Event()

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(OPEN_S):
                    if not secrets.compare_digest(await reader.readexactly(TOKEN_BYTES), token):
                        return
                    while await reader.read(PIECE):
                        pass
            except (OSError, EOFError, TimeoutError):
                pass
            finally:
                came.set()
                writer.close()

        server = await asyncio.start_server(swallow, self._address, 0, limit=PIECE)
        self._open += 1

        async def close() -> None:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OPEN_S):
                        await came.wait()
            finally:
                self._open -= 1
                server.close()

        port = int(server.sockets[0].getsockname()[1])
        return Probe(address=self._address, port=port, token=token.hex()), close()


async def measure(peer: Peer) -> float | None:
    """Bytes/s that the link to `peer` carries now."""
    try:
        probe = await peer.probe()
        if not probe.port:
            return None
        return await asyncio.to_thread(_send, probe)
    except (SternaError, OSError, ValueError) as error:
        log.debug("the link to %s was not measured: %s", peer.name, error)
        return None


def _send(probe: Probe) -> float | None:
    data = memoryview(os.urandom(PIECE))
    with socket.create_connection((probe.address, probe.port), CONNECT_S) as link:
        link.sendall(bytes.fromhex(probe.token))
        link.settimeout(MEASURE_S)
        _fill(link, data, clock.monotonic() + WARM_S)
        began, before = clock.monotonic(), _acknowledged(link)
        _fill(link, data, began + MEASURE_S)
        took, sent = clock.monotonic() - began, _acknowledged(link) - before
    return sent / took if sent > 0 else None


def _fill(link: socket.socket, data: memoryview, until: float) -> None:
    while clock.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            link.send(data)


def _acknowledged(link: socket.socket) -> int:
    facts = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int(struct.unpack_from("Q", facts, _BYTES_ACKED)[0])
