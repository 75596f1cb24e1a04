"""Does the way to another host connect, and how fast is it? Asked of TCP itself, in a moment.

The target listens on its migration addresses for connections that know a single-use token, and
throws away what comes. Each address is tried; what is sent for a tenth of a second on the first one
that connects is the speed. Promises: bounded in time, memory and number on both sides; nothing of a
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
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from sterna import clock
from sterna.carrier import tcpinfo
from sterna.checks.facts import LinkFacts
from sterna.errors import SternaError
from sterna.host import ping
from sterna.model.check import Way
from sterna.model.reservation import Endpoint, Probe
from sterna.model.settings import preferred
from sterna.move.peer import Peer

WARM_S = 0.02  # TCP's slow start, and what the queues on the way swallow at once
MEASURE_S = 0.08
OPEN_S = 3.0  # a source comes at once or never
MAX_OPEN = 4  # at a time
PLACE_S = 1.0  # that who comes then waits for a place
CONNECT_S = 1.0
TOKEN_BYTES = 16
PIECE = 256 << 10
_TCP_INFO_BYTES = 256
_BYTES_ACKED = 120  # struct tcp_info of linux/tcp.h

log = logging.getLogger(__name__)


class Probes:
    """The target's side: what sources may send to for a moment."""

    def __init__(self, addresses: Callable[[], Sequence[str]]) -> None:
        self._addresses = addresses
        self._places = asyncio.Semaphore(MAX_OPEN)

    async def open(self) -> tuple[Probe, Coroutine[Any, Any, None] | None]:
        """Where to send to, and the work that must be run to receive it, if there is any."""
        addresses = self._addresses()
        if not addresses:
            return Probe(), None
        try:
            async with asyncio.timeout(PLACE_S):
                await self._places.acquire()
        except TimeoutError:
            return Probe(is_busy=True), None
        servers: list[asyncio.Server] = []
        try:
            return await self._listen(addresses, servers)
        except BaseException:
            self._leave(servers)
            raise

    def _leave(self, servers: Sequence[asyncio.Server]) -> None:
        for server in servers:
            server.close()
        self._places.release()

    async def _listen(
        self, addresses: Sequence[str], servers: list[asyncio.Server]
    ) -> tuple[Probe, Coroutine[Any, Any, None]]:
        """With a place, which the work gives back."""
        token = secrets.token_bytes(TOKEN_BYTES)
        came = asyncio.Event()

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(OPEN_S):
                    if not secrets.compare_digest(await reader.readexactly(TOKEN_BYTES), token):
                        return
                    came.set()
                    while await reader.read(PIECE):
                        pass
            except (OSError, EOFError, TimeoutError):
                pass
            finally:
                writer.close()

        lacking: list[str] = []
        for address in addresses:
            try:
                servers.append(await asyncio.start_server(swallow, address, 0, limit=PIECE))
            except OSError as error:
                log.warning("moves cannot arrive at %s: %s", address, error.strerror)
                lacking.append(address)

        async def close() -> None:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OPEN_S):
                        await came.wait()
            finally:
                self._leave(servers)

        ends = [server.sockets[0].getsockname() for server in servers]
        endpoints = tuple(Endpoint(address=end[0], port=end[1]) for end in ends)
        first = endpoints[0] if endpoints else None
        probe = Probe(
            address=first.address if first else "",
            port=first.port if first else 0,
            endpoints=endpoints,
            lacking=tuple(lacking),
            token=token.hex(),
        )
        return probe, close()


async def look(peer: Peer, *, is_live: bool, networks: Sequence[str] = ()) -> LinkFacts:
    """Which ways to `peer` connect, and bytes/s that one of them carries now if the VM runs.

    What goes of a VM that is off goes over the port of the API, so that is tried then. Our end must
    be in one of `networks`, if there are any.
    """
    try:
        probe = await peer.probe()
    except (SternaError, ValueError) as error:
        log.debug("the link to %s was not measured: %s", peer.name, error)
        return LinkFacts()
    if probe.is_busy:
        return LinkFacts(is_busy=True)
    absent = [
        Way(address=address, port=0, state="absent", reason=f"{peer.name} does not have it")
        for address in probe.lacking
    ]
    api = urlsplit(peer.url).port
    ends = [one if is_live or api is None else replace(one, port=api) for one in probe.endpoints]
    tried = await asyncio.gather(*(asyncio.to_thread(_try, end) for end in ends))
    if not is_live:  # nothing is measured then: others need not wait for it
        await asyncio.to_thread(_let_go, probe)
    ways = [way for way, _ in tried]
    links = {way.address: link for way, link in tried if link is not None}
    addresses = usable(ways, (), networks)
    try:
        first = links[addresses[0]] if addresses and is_live else None
        rate = await asyncio.to_thread(_measure, first, probe) if first else None
    except (OSError, ValueError) as error:
        log.debug("the link to %s was not measured: %s", peer.name, error)
        rate = None
    finally:
        for link in links.values():
            link.close()
    return LinkFacts(rate=rate, ways=(*ways, *absent), addresses=addresses)


def usable(
    ways: Sequence[Way], addresses: Sequence[str], networks: Sequence[str]
) -> tuple[str, ...]:
    """The target's addresses that a source may use which keeps to `networks`, the preferred first.

    `addresses` are all of the target's, in its order; `ways` what was tried of them, if anything was.
    """
    ends = {way.address: way.local for way in ways if way.state == "open"}
    if not ways:
        ends = {address: _local(address) for address in addresses}
    if not networks:
        return tuple(ends)
    ours = preferred(tuple(dict.fromkeys(local for local in ends.values() if local)), networks)
    return tuple(address for local in ours for address, one in ends.items() if one == local)


def _local(address: str) -> str:
    """Our end of a way there as the kernel would choose it; empty: it knows none. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            link.connect((address, 9))
            return str(link.getsockname()[0])
    except OSError:
        return ""


def _try(end: Endpoint) -> tuple[Way, socket.socket | None]:
    """One way, and the connection if it is open. Blocks for CONNECT_S at most, twice if not."""
    way = Way(address=end.address, port=end.port, state="open")
    try:
        link = socket.create_connection((end.address, end.port), CONNECT_S)
    except OSError as error:
        is_there = isinstance(error, ConnectionRefusedError) or ping.answers(end.address, CONNECT_S)
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return replace(way, state="blocked" if is_there else "unreachable", reason=reason), None
    try:
        rtt_ms = round(tcpinfo.read(link).rtt_us / 1000, 2)
        return replace(way, local=str(link.getsockname()[0]), rtt_ms=rtt_ms), link
    except OSError as error:  # it has broken meanwhile
        link.close()
        return replace(way, state="blocked", reason=error.strerror or str(error)), None


def _let_go(probe: Probe) -> None:
    """Tell the target that nothing will be sent; else it notices after OPEN_S."""
    for end in probe.endpoints[:1]:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((end.address, end.port), CONNECT_S) as link,
        ):
            link.sendall(bytes.fromhex(probe.token))


def _measure(link: socket.socket, probe: Probe) -> float | None:
    data = memoryview(os.urandom(PIECE))
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
