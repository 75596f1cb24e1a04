"""Who may ask, and how much at once: pure ASGI, around everything else.

Promises: a request is trusted because of the listener it came in by, or because of its token; an
application that nobody put behind `trusted` or `token_required` refuses everything. A body is
whole, small and quick, or the routes never see it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sterna import clock
from sterna.api.problems import answer
from sterna.errors import NotAllowed, SternaError, TooLarge, TooSlow

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20  # bytes; a large spec has 100 kB, the UEFI variables of a move 720 kB
BODY_S = 30.0  # for all of it, from the first byte of the headers
ACCESS = "access"  # key of scope["state"]: "local" or "token"


def trusted(app: ASGIApp) -> ASGIApp:
    """For a listener that only the administrator of this host can reach."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        _state(scope)[ACCESS] = "local"
        await app(scope, receive, send)

    return serve


def token_required(app: ASGIApp, token: str) -> ASGIApp:
    """For a listener that others can reach: `Authorization: Bearer TOKEN`, compared in equal time."""
    if not token:
        raise ValueError("an empty token would let everybody in")
    wanted = token.encode()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        given = _bearer(scope)
        if given is None or not hmac.compare_digest(given, wanted):
            reason = "it carries no token" if given is None else "its token is not this host's"
            error = NotAllowed(
                what="this request",
                reason=reason,
                fix="Give the token of this host: sterna --token-file FILE (its token_file)",
            )
            log.warning("%s: %s", _client(scope), error.message)
            await _refuse(error, scope, receive, send, status=401)
            return
        _state(scope)[ACCESS] = "token"
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
    length = _header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > MAX_BODY:
        raise TooLarge(limit=MAX_BODY)
    pieces, size = [], 0  # joined once: growing one buffer costs more than all the rest
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > MAX_BODY:
                    raise TooLarge(limit=MAX_BODY)
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError as error:
        raise TooSlow(seconds=BODY_S) from error


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
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    await answer(error, headers, status)(scope, receive, send)


def _state(scope: Scope) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state


def _header(scope: Scope, name: bytes) -> bytes | None:
    found = [value for key, value in scope["headers"] if key == name]
    return found[0] if len(found) == 1 else None


def _bearer(scope: Scope) -> bytes | None:
    kind, _, token = (_header(scope, b"authorization") or b"").partition(b" ")
    return token.strip() if kind.lower() == b"bearer" and token.strip() else None


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "a local client"
