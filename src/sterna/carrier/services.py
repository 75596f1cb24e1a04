"""The Unix sockets of a relay: who connects gets a stream of the link, and the other way round.

A source listens, one path for each service, for its QEMU; a target connects to its QEMU's path when
a stream of that service arrives. `memory` goes through the codec, all others are bytes.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.carrier.control import MEMORY, Bottleneck, MemoryStats, Role, ServiceStats
from sterna.carrier.link import Link, Stream
from sterna.carrier.pumps import BytePump, Counts, Pump
from sterna.errors.carrier import LinkClosed, StreamReset

if TYPE_CHECKING:
    from sterna.carrier.memory import MemorySource, MemoryTarget

CONNECT_S = 10.0  # a QEMU whose main loop is busy accepts late
_BACKLOG = 16


class Unusable(Exception):
    """A socket cannot be made; the text says why."""


class Services:
    """`workers`: threads that compress memory. `tell` says one sentence to the daemon."""

    def __init__(
        self, role: Role, paths: Mapping[str, str], workers: int, tell: Callable[[str], None]
    ) -> None:
        self._role = role
        self._paths = dict(paths)
        self._workers = workers
        self._tell = tell
        self._listeners: dict[socket.socket, str] = {}
        self._lock = threading.Lock()
        self._live: list[Pump] = []
        self._opened = dict.fromkeys(paths, 0)
        self._done = {name: Counts() for name in paths}  # by pumps that have ended
        self._memory: MemorySource | MemoryTarget | None = None  # the latest
        self._closing = False

    def listen(self) -> None:
        """Make the sockets, readable by root alone. Raises Unusable."""
        for name, given in self._paths.items():
            path = Path(given)
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listeners[made] = name
            try:
                path.unlink(missing_ok=True)
                made.bind(given)
                path.chmod(0o600)
                made.listen(_BACKLOG)
            except OSError as error:
                raise Unusable(
                    f"{path} cannot be listened on: {error.strerror or error}"
                ) from error

    def run(self, link: Link, cache_bytes: int) -> None:
        """From now on connections and streams are joined, until the link is closed."""
        work = self._accept if self._role is Role.SOURCE else self._connect
        threading.Thread(
            target=work, args=(link, cache_bytes), name="services", daemon=True
        ).start()

    def close(self) -> None:
        """QEMU's connections end, the paths are gone."""
        with self._lock:
            self._closing = True
            live = list(self._live)
        for made, name in self._listeners.items():
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                Path(self._paths[name]).unlink()
        for pump in live:
            pump.cut()

    # ---- figures

    @property
    def live(self) -> int:
        """Connections."""
        return len(self._live)

    @property
    def is_deserted(self) -> bool:
        """Whether QEMU has closed all its connections."""
        return all(pump.is_deserted for pump in list(self._live))

    def hurry(self) -> None:
        """A guest waits for single pages of what goes through `memory`: post-copy."""
        if self._memory is not None:
            self._memory.hurry()

    def tick(self, rtt_s: float, *, is_limited: bool) -> None:
        if self._memory is not None:
            self._memory.tick(rtt_s, is_limited=is_limited)

    @property
    def memory(self) -> MemoryStats | None:
        return self._memory.stats if self._memory is not None else None

    @property
    def bottleneck(self) -> Bottleneck:
        return self._memory.bottleneck if self._memory is not None else Bottleneck.IDLE

    @property
    def stats(self) -> dict[str, ServiceStats]:
        with self._lock:
            live = list(self._live)
            sums = dict(self._done)
        for pump in live:
            sums[pump.service] += pump.counts
        return {
            name: ServiceStats(
                streams=sum(pump.service == name for pump in live),
                opened=self._opened[name],
                bytes_in=counts.bytes_in,
                bytes_out=counts.bytes_out,
                wire_out=counts.wire_out,
                wire_in=counts.wire_in,
            )
            for name, counts in sums.items()
        }

    # ---- threads

    def _accept(self, link: Link, cache_bytes: int) -> None:
        poll = select.poll()
        by_fd = {made.fileno(): made for made in self._listeners}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        while not self._closing:
            for fd, _ in poll.poll():
                made = by_fd[fd]
                try:
                    sock, _ = made.accept()
                except OSError:
                    continue
                try:
                    self._join(sock, link.open(self._listeners[made]), cache_bytes)
                except (LinkClosed, StreamReset) as error:
                    self._tell(str(error))
                    sock.close()

    def _connect(self, link: Link, cache_bytes: int) -> None:
        with contextlib.suppress(LinkClosed):
            while True:
                name, stream = link.accept()
                path = self._paths.get(name)
                if path is None:
                    stream.reset("no such service here")
                    self._tell(f"a stream for {name!r} was refused: no such service here")
                    continue
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.settimeout(CONNECT_S)
                    sock.connect(path)
                    sock.settimeout(None)
                except OSError as error:
                    reason = f"QEMU does not listen on {path}: {error.strerror or error}"
                    stream.reset(reason)
                    self._tell(reason)
                    sock.close()
                else:
                    self._join(sock, stream, cache_bytes)

    def _join(self, sock: socket.socket, stream: Stream, cache_bytes: int) -> None:
        pump = self._pump(sock, stream, cache_bytes)
        with self._lock:
            self._live.append(pump)
            self._opened[pump.service] += 1
            is_late = self._closing
        pump.start()
        if is_late:
            pump.cut()

    def _pump(self, sock: socket.socket, stream: Stream, cache_bytes: int) -> Pump:
        if stream.service != MEMORY:
            return BytePump(sock, stream, self._over)
        # numpy takes a while to import; `relay` has begun with it in the background.
        from sterna.carrier.memory import MemorySource, MemoryTarget  # noqa: PLC0415

        kind = MemorySource if self._role is Role.SOURCE else MemoryTarget
        memory = kind(sock, stream, self._over, cache_bytes=cache_bytes, workers=self._workers)
        self._memory = memory
        return memory

    def _over(self, pump: Pump) -> None:
        with self._lock:
            self._live.remove(pump)
            self._done[pump.service] += pump.counts
        if pump.failure:
            self._tell(f"{pump.service}: {pump.failure}")
