"""A relay as the daemon sees it: started for one move, told what to do, watched, ended.

Promises: a relay that ends, however, is noticed at once (`ended`), and `failure` then says why, in
its own words or those of its log; what it says is checked before it is believed; none is left
over after `stop`. No thread: the event loop reads its socket and its pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sterna.carrier import control
from sterna.carrier.control import Connect, Event, Grace, Level, Limit, Start, Stats, Stop
from sterna.carrier.facts import Endpoint, Route
from sterna.errors import CarrierFailed, SternaError
from sterna.qemu import process

START_S = 20.0  # a loaded host; else a quarter of a second
STOP_S = 3.0  # it has only to say goodbye to the other one
_LOG_LINES = 5

log = logging.getLogger(__name__)


class Relay:
    """Made by `start`, inside a running event loop.

    `stats` are the latest; `up` is set when the first channel is up; `ended` when the process is
    gone. `failure` is empty if it ended because it was told to, or the other end was.
    """

    def __init__(
        self,
        running: process.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[Event], None] | None,
        made: Sequence[Path],
    ) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self.stats: Stats | None = None
        self.up = asyncio.Event()
        self.ended = asyncio.Event()
        self.failure = ""
        self._process = running
        self._reader = reader
        self._writer = writer
        self._on_event = on_event or _log
        self._made = made  # sockets; it removes them, unless it is killed
        self._ready = asyncio.Event()
        self._stopping = False
        self._watcher = asyncio.get_running_loop().create_task(
            self._watch(), name=f"relay {running.pid}"
        )

    @classmethod
    async def start(
        cls,
        start: Start,
        *,
        log: Path,
        on_event: Callable[[Event], None] | None = None,
    ) -> Relay:
        """A relay that is ready: its services can be connected to, or it listens at `endpoints`.

        What it prints is appended to `log`. `on_event` is called in the event loop; without it
        events are logged. Raises CarrierFailed.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                command = [sys.executable, "-m", "sterna.carrier.relay", str(theirs.fileno())]
                running = await process.spawn(command, log=log, fds=[theirs.fileno()])
            except (OSError, SternaError) as error:
                ours.close()
                raise CarrierFailed(reason=str(error)) from error
        reader, writer = await asyncio.open_connection(sock=ours, limit=control.MAX_LINE)
        is_source = start.role is control.Role.SOURCE
        made = [Path(path) for path in start.services.values()] if is_source else []
        relay = cls(running, reader, writer, on_event, made)
        try:
            async with asyncio.timeout(START_S):
                await relay._send(start)
                await relay._first(relay._ready)
        except TimeoutError as error:
            await relay.stop(at_once=True)
            raise CarrierFailed(reason=f"it was not ready within {START_S:g} s") from error
        except BaseException:
            await relay.stop(at_once=True)
            raise
        return relay

    @property
    def pid(self) -> int:
        return self._process.pid

    def loss(self) -> CarrierFailed:
        """The error that says why it has ended."""
        return CarrierFailed(reason=self.failure or "it has ended")

    async def connect(self, routes: Sequence[Route], certificate: str, cache_bytes: int) -> None:
        """Tell a source where the target's relay is, and its certificate. Raises CarrierFailed."""
        await self._send(
            Connect(routes=tuple(routes), certificate=certificate, cache_bytes=cache_bytes)
        )

    async def set_limit(self, bytes_s: int | None) -> None:
        """Bytes a second on the wire; None: all that the link carries. Raises CarrierFailed."""
        await self._send(Limit(bytes_s))

    async def set_grace(self, seconds: float | None) -> None:
        """None: it never gives up, and goes on without this daemon. Raises CarrierFailed."""
        await self._send(Grace(seconds))

    async def stop(self, *, at_once: bool = False) -> None:
        """End it, by force if it must be. Idempotent; returns when the process is gone."""
        self._stopping = True
        try:
            if not at_once:
                with contextlib.suppress(CarrierFailed):
                    await self._send(Stop())
                async with asyncio.timeout(STOP_S):
                    await self.ended.wait()
        except TimeoutError:
            self._on_event(Event("the relay did not end by itself", Level.WARNING))
        finally:
            self._process.kill()
            await self._watcher

    async def _first(self, event: asyncio.Event) -> None:
        """Wait for it, or for the end of the process. Raises CarrierFailed."""
        loop = asyncio.get_running_loop()
        waits = {loop.create_task(one.wait()) for one in (event, self.ended)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        if not event.is_set():
            raise self.loss()

    async def _send(self, message: control.ToRelay) -> None:
        if self.ended.is_set():
            raise self.loss()
        try:
            self._writer.write(control.encode(message))
            await self._writer.drain()
        except OSError as error:
            raise CarrierFailed(reason=self.failure or "it does not listen any more") from error

    async def _watch(self) -> None:
        """Take what it says until its end."""
        talk = asyncio.get_running_loop().create_task(self._listen())
        status = await self._process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):  # what it said before is still in the socket
                await talk
        self._writer.close()
        for path in self._made:
            path.unlink(missing_ok=True)
        if status != 0 and not self.failure and not self._stopping:
            tail = self._process.log_tail(_LOG_LINES)
            how = f"by signal {-status}" if status and status < 0 else f"with status {status}"
            self.failure = f"it ended {how}" + (f": {tail}" if tail else "")
        self.ended.set()

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._take(control.decode(line))
        except ValueError as error:  # a line too long, or no message: it is not to be trusted
            self.failure = self.failure or f"what it says makes no sense ({error})"
            self._process.kill()
        except OSError:
            return

    def _take(self, message: control.ToRelay | control.FromRelay) -> None:
        match message:
            case Stats():
                self.stats = message
            case control.Ready():
                self.endpoints = message.endpoints
                self._ready.set()
            case control.Up():
                self.up.set()
            case Event():
                self._on_event(message)
            case control.Failed():
                self.failure = self.failure or message.reason
            case _:
                raise control.BadMessage("not for the daemon")


def _log(event: Event) -> None:
    log.log(logging.WARNING if event.level is Level.WARNING else logging.INFO, event.text)
