"""Listeners: the daemon's Unix socket for local users, and HTTPS for other hosts and remote users.

Promises: the Unix socket has mode 0600 from its first instant until it is given to the group that
may use it (0660), and replaces only a dead one; HTTPS is TLS 1.3; a connection ends when who is at
its other end is not trusted any more; leaving `listen` ends streams, lets requests under way
end within GRACE_S, and leaves no socket behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sterna import clock
from sterna.api.access import CERTIFICATE, LOCAL, PRINCIPAL, SERVED, proven
from sterna.api.events import ABORT
from sterna.errors import ListenFailed
from sterna.security import identity, served
from sterna.security import local as local_users
from sterna.security.audit import Audit
from sterna.security.authority import Authority
from sterna.security.trust import Trust
from sterna.security.web import Web

log = logging.getLogger(__name__)

GRACE_S = 5.0  # requests under way at shutdown; a start of a VM takes less
FLUSH_S = 1.0  # for the last bytes of answers
FIRST_REQUEST_S = 20.0  # a connection that sends no request for so long is dropped
IDLE_S = 60  # between two requests of one connection
MAX_HEADERS = 32 << 10  # bytes of request line and headers
MAX_CONNECTIONS = 256  # for each listener, event streams included
MAX_UNKNOWN = 192  # of them without a certificate: strangers never keep hosts out
BACKLOG = 128
MAX_SOCKET_PATH = 107  # bytes, sun_path of unix(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPS:
    """The listener for others, and whom it trusts."""

    address: str
    port: int
    trust: Trust
    web: Web | None = None  # what browsers meet
    more: tuple[str, ...] = ()  # addresses of migration networks, where files of moves arrive


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where it listens now."""

    socket: Path
    port: int  # of HTTPS, also when the system chose it; 0: none


@contextlib.asynccontextmanager
async def listen(
    app: FastAPI, path: Path, authority: Authority, audit: Audit, https: HTTPS | None = None
) -> AsyncIterator[Listening]:
    """Serve `app` on the Unix socket `path` and by `https` while the context lasts.

    `authority` says who asks; `audit` is told who is refused. Raises ListenFailed, and then listens nowhere.
    """
    with contextlib.ExitStack() as stack:
        guarded = proven(app, authority, audit)
        local = stack.enter_context(_unix_socket(path, authority.locals.gid))
        listeners = [(local, _Server(guarded))]
        port = 0
        if https is not None:
            tls, port = _tls(https), https.port
            https.trust.refused = lambda reason: audit.refused_soon(_in_tls(reason))
            for address in dict.fromkeys((https.address, *https.more)):
                remote = stack.enter_context(_tcp_socket(address, port))
                port = remote.getsockname()[1]
                listeners.append((remote, _Server(guarded, tls)))
        authority.follow(lambda: _hang_up(authority, [server for _, server in listeners]))
        async with asyncio.TaskGroup() as group:
            for listener, server in listeners:
                group.create_task(server.serve(sockets=[listener]), name="listener")
                await server.ready.wait()
            failure: BaseException | None = None
            try:
                yield Listening(socket=path, port=port)
            except BaseException as error:  # noqa: BLE001 - raised below, without the group around it
                failure = error
            app.state.closing.set()
            for _, server in listeners:
                server.stop()
    if failure is not None:
        raise failure


def _in_tls(reason: str) -> dict[str, str]:
    """For the audit; TLS does not say from where."""
    return {"who": "nobody", "from": "https", "code": "access.tls", "text": reason.lower()}


def _hang_up(authority: Authority, servers: list[_Server]) -> None:
    """End the connections of those who are not any more who they were, with all that is on them.

    A request that is being answered, and has itself brought this about, is answered.
    """
    for server in servers:
        for connection in list(server.server_state.connections):
            shown = getattr(connection, "shown", "")
            if shown and not authority.shows_somebody(shown):
                connection.transport.abort()
                continue
            cycle = getattr(connection, "cycle", None)
            if cycle is None or not cycle.response_started or cycle.response_complete:
                continue
            who = cycle.scope.get("state", {}).get(PRINCIPAL)
            if who is not None and not authority.is_valid(who):
                connection.transport.abort()


class _Connection(H11Protocol):
    """Lets routes drop a connection that does not read, and drops one that says nothing."""

    shown = ""  # fingerprint of the client's certificate

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        self.shown = identity.fingerprint_of(certificate) if certificate else ""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio leaves it out for sockets that were not made with the protocol's number: the
            # end of an answer would wait 40 ms for the acknowledgement of its beginning.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {
            **self.app_state,
            ABORT: transport.abort,
            CERTIFICATE: self.shown,
            SERVED: served.certificate(tls.context) if tls is not None else b"",
            LOCAL: local_users.credentials(sock) if tls is None and sock is not None else None,
        }
        if tls is not None and not self.shown:
            unknown = sum(not getattr(one, "shown", "") for one in self.connections)
            if unknown > MAX_UNKNOWN:  # this one is counted
                transport.abort()
        self._silence = self.loop.call_later(FIRST_REQUEST_S, self._still_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence.cancel()
        super().connection_lost(exc)

    def _still_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers and its ten looks a second."""

    def __init__(self, app: ASGIApp, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_S,
            h11_max_incomplete_event_size=MAX_HEADERS,
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self.ready = asyncio.Event()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stop.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Like uvicorn's, but it waits for nothing that has ended, and leaves nothing behind."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        connections, requests = self.server_state.connections, self.server_state.tasks
        for connection in list(connections):
            connection.shutdown()
        if under_way := set(requests):
            await asyncio.wait(under_way, timeout=GRACE_S)
        if stuck := set(requests):
            log.warning("%d requests did not end in time and were cut off", len(stuck))
            for request in stuck:
                request.cancel()
            await asyncio.wait(stuck, timeout=FLUSH_S)
        deadline = clock.monotonic() + FLUSH_S
        while connections and clock.monotonic() < deadline:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
        for connection in list(connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield  # signals are the daemon's


@contextlib.contextmanager
def _unix_socket(path: Path, group: int | None = None) -> Any:
    """A listening socket at `path`, made beside it and moved there when it is ready."""
    where = str(path)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    if len(os.fsencode(draft)) > MAX_SOCKET_PATH:
        fix = "Set a shorter run_dir in sternad's configuration"
        raise ListenFailed(where=where, reason="the path is too long for a socket", fix=fix)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        try:
            _require_dead(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            # Linux gives the file the mode of the unbound socket: it is never open wider.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(draft))
            stack.callback(draft.unlink, missing_ok=True)
            listener.listen(BACKLOG)
            if group is not None:  # open wider only when it is the group's
                os.chown(draft, -1, group)
                draft.chmod(0o660)
            made = draft.stat()
            draft.rename(path)
        except OSError as error:
            raise ListenFailed(
                where=where, reason=error.strerror or str(error), fix=f"Look at {path.parent}"
            ) from error
        stack.callback(_remove, path, made)
        yield listener


def _require_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise ListenFailed(
        where=str(path),
        reason="another sternad answers there",
        fix="Stop it first: systemctl stop sternad",
    )


def _remove(path: Path, made: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(path.stat(), made):
            path.unlink()


@contextlib.contextmanager
def _tcp_socket(address: str, port: int) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ListenFailed(
            where=f"{address} port {port}",
            reason=error.strerror or str(error),
            fix="Correct [listen] and [migration] in sternad's configuration",
        ) from error
    with listener:
        yield listener


def _tls(https: HTTPS) -> ssl.SSLContext:
    try:
        return https.trust.listener(https.web)
    except (OSError, ssl.SSLError) as error:
        own = https.trust.own
        raise ListenFailed(
            where=f"{https.address} port {https.port}",
            reason=f"{own.certificate} and {own.key} do not serve: {error}",
            fix="Move both files away: sternad makes new ones, and peers must be paired again",
        ) from error
