"""Who may ask, and how much at once: pure ASGI, around everything else.

Promises: a request is trusted because of the listener it came in by, or because of the certificate that
its connection has shown; an application that nobody put behind `trusted` or `certificate_required`
refuses everything. A body is
whole, small and quick, or the routes never see it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sterna import clock
from sterna.api.problems import answer
from sterna.errors import NotAllowed, SternaError, TooLarge, TooSlow

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20  # bytes; a large spec has 100 kB, the UEFI variables of a move 720 kB
BODY_S = 30.0  # for all of it, from the first byte of the headers
BODY_JOIN_S = 5.0  # of somebody whom nobody knows
MAX_JOIN = 32 << 10  # bytes; a certificate and a few names
ACCESS = "access"  # key of scope["state"]: "local", "peer", "guest" or "nobody"
CALLER = "caller"  # the name of the peer
CERTIFICATE = "certificate"  # fingerprint of what the connection has shown; empty: nothing
LIMIT = "limit"  # bytes of the body, if fewer than for all
JOIN = ("POST", "/v1/pairing")
JOINED = ("POST", "/v1/peer/paired")


def trusted(app: ASGIApp) -> ASGIApp:
    """For a listener that only the administrator of this host can reach."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        _state(scope)[ACCESS] = "local"
        await app(scope, receive, send)

    return serve


class Trusting(Protocol):
    """Who is at the other end, by the fingerprint of the certificate that was shown."""

    async def seen(self, fingerprint: str) -> Any: ...


def certificate_required(app: ASGIApp, trust: Trusting) -> ASGIApp:
    """For a listener that others can reach: who asks is known by the certificate of the connection.

    A host that joins has one door before it is known (JOIN), and one while it is a guest (JOINED).
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        state = _state(scope)
        shown = state.get(CERTIFICATE, "")
        caller = await trust.seen(shown) if shown else None
        asked = (scope.get("method"), scope.get("path"))
        if not shown and asked == JOIN:
            state[ACCESS], state[LIMIT] = "nobody", MAX_JOIN
        elif caller is not None and caller.is_guest and asked == JOINED:
            state[ACCESS], state[LIMIT] = "guest", MAX_JOIN
        elif caller is not None and not caller.is_guest:
            state[ACCESS] = "peer"
            state[CALLER] = caller.name
        else:
            reason = "its certificate is not known" if shown else "it shows no certificate"
            error = NotAllowed(
                what="this request",
                reason=reason,
                fix="Pair the two hosts: sterna host invite on one, sterna host join on the other",
            )
            log.warning("%s: %s", _client(scope), error.message)
            await _refuse(error, scope, receive, send, status=401)
            return
        await app(scope, receive, send)

    return serve


class Gate:
    """Innermost of the three: refuses what is not trusted, reads the body, logs the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if ACCESS not in _state(scope):
            error: SternaError = NotAllowed(
                what="this request", reason="its listener proves nothing", fix="Use another one"
            )
            await _refuse(error, scope, receive, send)
            return
        began = clock.monotonic()
        try:
            body = await _body(scope, receive)
        except (TooLarge, TooSlow) as error:
            await _refuse(error, scope, receive, send)
            return
        if body is None:
            return  # the client went away
        await self.app(scope, _replay(body, receive), _logging(send, scope, began))


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    is_small = LIMIT in _state(scope)
    limit: int = _state(scope).get(LIMIT, MAX_BODY)
    within_s = BODY_JOIN_S if is_small else BODY_S
    length = _header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise TooLarge(limit=limit)
    pieces, size = [], 0  # joined once: growing one buffer costs more than all the rest
    try:
        async with asyncio.timeout(within_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > limit:
                    raise TooLarge(limit=limit)
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError as error:
        raise TooSlow(seconds=within_s) from error


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _logging(send: Send, scope: Scope, began: float) -> Send:
    async def logged(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            took = 1000 * (clock.monotonic() - began)
            is_everyday = scope["method"] in ("GET", "HEAD") or "/files/" in scope["path"]
            level = logging.DEBUG if is_everyday else logging.INFO
            log.log(level, "%s %s: %d in %.0f ms", scope["method"], scope["path"], status, took)
        await send(message)

    return logged


async def _refuse(
    error: SternaError, scope: Scope, receive: Receive, send: Send, status: int | None = None
) -> None:
    # The connection ends: a body that nobody will read may still be on its way.
    headers = {"Connection": "close"}
    await answer(error, headers, status)(scope, receive, send)


def _state(scope: Scope) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state


def _header(scope: Scope, name: bytes) -> bytes | None:
    found = [value for key, value in scope["headers"] if key == name]
    return found[0] if len(found) == 1 else None


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "a local client"
