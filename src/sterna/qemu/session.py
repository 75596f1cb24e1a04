"""One QEMU's two QMP connections: everything said to a QEMU goes through a `Session`.

Promises: every wait ends, by its own deadline or with QEMULost as soon as QEMU is gone; events
that QEMU sent before it went are delivered before QEMULost is raised; the out-of-band connection
answers while QEMU's main loop is blocked. Never ends QEMU: `close` only hangs up.

qemu.qmp 0.0.6 alone keeps silent about a QEMU that dies (listeners wait for ever) and stores every
event it ever saw; both are mended here and need not be known elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, StateError
from qemu.qmp import QMPError as LibraryError
from qemu.qmp.events import EventListener
from qemu.qmp.message import Message
from qemu.qmp.protocol import Runstate

from sterna.errors import QEMULost, QMPError, QMPTimeout

# What goes wrong is raised here, in our words; the library's own lines would only repeat it.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

CONNECT_S = 10.0  # a loaded host needs seconds to start a QEMU, never more
RETRY_S = 0.01  # until a starting QEMU listens
ANSWER_S = (
    30.0  # a healthy main loop answers within milliseconds, flushing a slow disk takes longer
)


class Events(EventListener):
    """Events of one `Session.listen`: an async iterator, or `get` one by one.

    In the order of their arrival; raises QEMULost after the last one of a QEMU that went away.
    """

    def __init__(self, session: Session, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self._session = session
        self._arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def put(self, event: Message) -> None:
        """The library's hook. Unlike the original keeps no history of what was delivered."""
        if self.accept(event):
            self._arrived.put_nowait({str(key): value for key, value in event.items()})

    def end(self) -> None:
        """No more events will come."""
        self._arrived.put_nowait(None)

    async def get(self, timeout_s: float | None = None) -> dict[str, Any]:  # type: ignore[override]
        """The next event. Raises TimeoutError, QEMULost."""
        async with asyncio.timeout(timeout_s):
            event = await self._arrived.get()
        if event is None:
            self.end()  # for whoever asks next
            raise self._session.loss()
        return event

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:  # type: ignore[override]
        return self

    async def __anext__(self) -> dict[str, Any]:  # type: ignore[override]
        return await self.get()


class Session:
    """Made by `connect`. `lost` is set when QEMU is gone, or after `close`."""

    def __init__(self, name: str, control: QMPClient, oob: QMPClient) -> None:
        self.name = name
        self.lost = asyncio.Event()
        self._control = control
        self._oob = oob
        self._reason = "the connection was closed"
        self._listeners: list[Events] = []
        self._deadlines: set[asyncio.Timeout] = set()  # of the commands under way
        self._closing = asyncio.Event()
        self._giving = asyncio.Lock()
        self._watchers = [
            asyncio.get_running_loop().create_task(self._watch(client), name=f"qmp of {name}")
            for client in (control, oob)
        ]

    @classmethod
    async def connect(
        cls,
        name: str,
        control: Path,
        oob: Path,
        timeout_s: float = CONNECT_S,
        is_alive: Callable[[], bool] | None = None,
    ) -> Session:
        """Connect to both sockets, waiting for a QEMU that is about to open them.

        With `is_alive` a QEMU that ends meanwhile is noticed at once, not at the deadline.
        Raises QMPTimeout (nobody listens, or its main loop does not answer), QEMULost.
        """
        clients: list[QMPClient] = []
        try:
            async with asyncio.timeout(timeout_s):
                for path in (control, oob):
                    client = await _connect(name, path, is_alive)
                    clients.append(client)
        except BaseException as error:
            for client in clients:
                await _hang_up(client)
            if isinstance(error, TimeoutError):
                raise QMPTimeout(name=name, command="at all", seconds=timeout_s) from error
            raise
        return cls(name, *clients)

    @property
    def is_lost(self) -> bool:
        return self.lost.is_set()

    def loss(self) -> QEMULost:
        """The error that says why the session is lost."""
        return QEMULost(name=self.name, reason=self._reason)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float = ANSWER_S,
    ) -> Any:
        """QEMU's answer. Raises QMPError (it said no), QMPTimeout, QEMULost.

        After QMPTimeout or QEMULost the command may or may not have been carried out.
        """
        return await self._ask(self._control, command, arguments, timeout_s, oob=False)

    async def execute_oob(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float = ANSWER_S,
    ) -> Any:
        """As `execute`, past a blocked main loop; for the few commands that QEMU allows so."""
        return await self._ask(self._oob, command, arguments, timeout_s, oob=True)

    async def give_fd(self, name: str, fd: int) -> None:
        """Hand an open file to QEMU, which calls it `name` (`fd:NAME`); ours stays open.

        Raises QMPError, QMPTimeout, QEMULost.
        """
        async with self._giving:  # a descriptor belongs to the command that follows it
            if self.is_lost:
                raise self.loss()
            try:
                self._control.send_fd_scm(fd)
            except (StateError, OSError, ValueError) as error:
                await self.lost.wait()
                raise self.loss() from error
            await self.execute("getfd", {"fdname": name})

    async def _ask(
        self,
        client: QMPClient,
        command: str,
        arguments: Mapping[str, object] | None,
        timeout_s: float,
        *,
        oob: bool,
    ) -> Any:
        if self.is_lost:
            raise self.loss()
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                self._deadlines.add(deadline)
                try:
                    return await client.execute(command, arguments, oob=oob)
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError as error:
            if self.is_lost:
                raise self.loss() from error
            raise QMPTimeout(name=self.name, command=command, seconds=timeout_s) from error
        except ExecuteError as error:
            raise QMPError(name=self.name, command=command, reason=str(error)) from error
        except (ExecInterruptedError, StateError) as error:
            await self.lost.wait()  # set by the watcher within this turn of the loop
            raise self.loss() from error

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[Events]:
        """Events called `names`, from now until the block ends; none named: all."""
        events = Events(self, names)
        self._control.register_listener(events)
        self._listeners.append(events)
        if self.is_lost:
            events.end()
        try:
            yield events
        finally:
            self._listeners.remove(events)
            self._control.remove_listener(events)

    async def _watch(self, client: QMPClient) -> None:
        """Until `client` has lost its connection, or `close`: then everybody is told.

        Alone hangs up: the library allows that once.
        """
        loop = asyncio.get_running_loop()
        waits = [loop.create_task(_ended(client)), loop.create_task(self._closing.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._end(await _hang_up(client))

    def _end(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self._reason = reason
        self.lost.set()
        for events in self._listeners:
            events.end()
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(0)  # now

    async def close(self) -> None:
        """Hang up; QEMU runs on. Whoever still waits gets QEMULost."""
        self._end("the connection was closed")
        self._closing.set()
        await asyncio.wait(self._watchers)


async def _connect(name: str, path: Path, is_alive: Callable[[], bool] | None) -> QMPClient:
    """A client connected to `path`; waits without end for somebody to listen there."""
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                await loop.sock_connect(connection, str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                if is_alive is not None and not is_alive():
                    raise QEMULost(name=name, reason="it ended while it started") from error
                await asyncio.sleep(RETRY_S)
        client = QMPClient()
        client.events.event_filter = _nothing
        await client.connect(connection)
    except ConnectError as error:
        raise QEMULost(name=name, reason=f"it hung up at once ({error})") from error
    except BaseException:
        connection.close()
        raise
    return client


async def _ended(client: QMPClient) -> None:
    """Returns when `client` has lost its connection."""
    while client.runstate is Runstate.RUNNING:  # looked at and waited for without a gap between
        await client.runstate_changed()


def _nothing(_event: Message) -> bool:
    """Filter of the library's own listener, which nobody reads and nobody empties."""
    return False


async def _hang_up(client: QMPClient) -> str:
    """Close a client in any state; why its connection had ended."""
    if client.runstate is Runstate.IDLE:
        return "the connection was closed"
    try:
        await client.disconnect()
    except (EOFError, ConnectionError):
        return "it closed the connection"
    except (OSError, LibraryError) as error:
        return str(error) or type(error).__name__
    except (AssertionError, asyncio.QueueFull):
        # 0.0.6: an answer that nobody has fetched yet when the connection ends.
        return "it closed the connection"
    return "the connection was closed"
