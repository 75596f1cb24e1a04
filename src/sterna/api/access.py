"""Who asks, and how much at once: pure ASGI, around everything else.

Promises: a request is its principal's because of what its connection or its headers prove, which
`Authority` judges; an application that nobody put behind `proven` refuses everything. Who is nobody,
or only a guest, finds a few doors and no more, with little time and room. A body is whole, small
and quick, or the routes never see it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from http.cookies import CookieError, SimpleCookie
from typing import Any, Protocol
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sterna import clock
from sterna.api.problems import answer
from sterna.errors import BadSpec, Denied, NotProven, SternaError, TooLarge, TooSlow
from sterna.kerberos import negotiate
from sterna.model import edge
from sterna.model.access import MAX_REASON, Principal
from sterna.security.audit import short
from sterna.security.authority import PAIR, Met, Shown

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20  # bytes; a large spec has 100 kB, the UEFI variables of a move 720 kB
BODY_S = 30.0  # for all of it, from the first byte of the headers
BODY_JOIN_S = 5.0  # of somebody whom nobody knows
MAX_JOIN = 32 << 10  # bytes; a certificate and a few names
PRINCIPAL = "principal"  # key of scope["state"]: who asks
ORIGIN = "origin"  # where from: an address, or "unix"
REASON = "reason"  # why, as the caller says
BEHALF = "behalf"  # for whom a host asks, as that host says, or as a ticket proves
USER = "user"  # for whom a host asks: Principal, by the user's ticket
TICKETS = "tickets"  # what shows other hosts who asks; None: nothing does
STILL = "still"  # whether the principal would still be let in
CERTIFICATE = "certificate"  # fingerprint of what the connection has shown; empty: nothing
SERVED = "served"  # the certificate (DER) that the connection's server has shown; empty: no TLS
LOCAL = "local"  # credentials of the process at the other end of a Unix socket
LIMIT = "limit"  # bytes of the body, if fewer than for all
COOKIE = "__Host-sterna"
LOG_IN = ("POST", "/v1/sessions")  # a session that is there already counts for nothing
NEVER_KEPT = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
DOORS = {  # what those may ask who are no principals yet
    "nobody": {("POST", "/v1/pairing"), LOG_IN},
    "guest": {("POST", "/v1/peer/paired")},
}


class Judge(Protocol):
    """Who is at the other end, by all that it shows."""

    host: str

    async def who(self, shown: Shown) -> Principal: ...
    async def by_ticket(self, token: bytes, certificate: bytes, shown: Shown) -> Met: ...
    @property
    def takes_tickets(self) -> bool: ...
    def is_valid(self, principal: Principal) -> bool: ...


class Witness(Protocol):
    """Writes down who was refused."""

    async def refused(self, fields: dict[str, Any]) -> None: ...


def proven(app: ASGIApp, judge: Judge, witness: Witness) -> ASGIApp:
    """For every listener: who asks is known before anything else is looked at."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        state = _state(scope)
        state[ORIGIN] = _origin(scope)
        try:
            shown, served = _shown(scope), state.get(SERVED, b"")
            ticket = _ticket(scope, b"authorization")
            if ticket is None:
                principal = await judge.who(shown)
            else:
                met = await judge.by_ticket(ticket, served, shown)
                principal, state[TICKETS] = met.principal, met.tickets
                send = _proving(send, met.reply)
            doors = DOORS.get(principal.kind)
            if doors is not None:
                if (scope["method"], scope["path"]) not in doors:
                    raise _unknown(judge.host, state)
                state[LIMIT] = MAX_JOIN
            state[REASON] = _words(scope, b"sterna-reason")
            state[BEHALF] = _words(scope, b"sterna-for") if principal.kind == "host" else ""
            delegated = _ticket(scope, b"sterna-ticket") if principal.kind == "host" else None
            if delegated is not None:  # no browser sends that one
                meant = replace(shown, csrf="of a host")
                state[USER] = (await judge.by_ticket(delegated, served, meant)).principal
                state[BEHALF] = state[USER].text
        except (Denied, BadSpec) as error:
            log.warning("%s: %s", state[ORIGIN], error.message)
            if isinstance(error, Denied):
                await witness.refused(
                    {
                        "who": "nobody",
                        "from": state[ORIGIN],
                        "method": short(scope["method"]),
                        "path": short(scope["path"]),
                        "status": error.status,
                        "code": error.code,
                        "text": error.message,
                    }
                )
            schemes = ("Negotiate", "Bearer") if judge.takes_tickets else ("Bearer",)
            await _refuse(error, scope, receive, send, schemes)
            return
        state[PRINCIPAL] = principal
        state[STILL] = lambda: judge.is_valid(principal)
        await app(scope, receive, send)

    return serve


def _unknown(host: str, state: MutableMapping[str, Any]) -> NotProven:
    shown = state.get(CERTIFICATE, "")
    reason = "its certificate is not known" if shown else "it shows no certificate and no token"
    return NotProven(host=host, reason=reason, fix=PAIR)


def _shown(scope: Scope) -> Shown:
    state = _state(scope)
    return Shown(
        method=scope["method"],
        local=state.get(LOCAL),
        fingerprint=state.get(CERTIFICATE, ""),
        token=_token(scope),
        session=None if (scope["method"], scope["path"]) == LOG_IN else _cookie(scope),
        csrf=_text(scope, b"x-csrf-token"),
    )


def _token(scope: Scope) -> str | None:
    """What follows `Bearer`; empty, which is no token, for anything else that is said."""
    found = _values(scope, b"authorization")
    if not found:
        return None
    kind, _, token = found[0].decode("latin-1").partition(" ")
    return token.strip() if len(found) == 1 and kind.lower() == "bearer" else ""


def _ticket(scope: Scope, name: bytes) -> bytes | None:
    """What follows `Negotiate` in that header, decoded; empty, which is no ticket, for what cannot be."""
    found = _values(scope, name)
    if len(found) != 1 or found[0][:10].lower() != b"negotiate ":
        return None
    try:
        return base64.b64decode(found[0][10:].strip(), validate=True)
    except ValueError:
        return b""


def _proving(send: Send, reply: bytes) -> Send:
    """This host's proof goes with its answer."""

    async def proving(message: Message) -> None:
        if message["type"] == "http.response.start":
            told = (b"www-authenticate", negotiate.header(reply).encode())
            message["headers"] = [*message.get("headers", ()), told]
        await send(message)

    return proving


def _cookie(scope: Scope) -> str | None:
    """The session's; empty, which is no session, if there are several."""
    found = [one.decode("latin-1") for one in _values(scope, b"cookie")]
    text = "; ".join(found)
    count = text.count(f"{COOKIE}=")
    if not count:
        return None
    try:
        morsel = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None and count == 1 else ""


def _words(scope: Scope, name: bytes) -> str:
    """A header that people wrote, percent-encoded UTF-8. Raises BadSpec."""
    text = unquote(_text(scope, name) or "")
    if len(text) > MAX_REASON or not text.isprintable():
        where = f"the header {name.decode()}"
        raise BadSpec(where=where, reason=f"at most {MAX_REASON} printable characters")
    return text


def _text(scope: Scope, name: bytes) -> str | None:
    found = _values(scope, name)
    return found[0].decode("latin-1") if len(found) == 1 else None


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _origin(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unix"


class Gate:
    """Within `proven`: refuses what is not trusted, reads the body, logs the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if PRINCIPAL not in _state(scope):
            error: SternaError = NotProven(
                host="this host", reason="its listener proves nothing", fix="Use another one"
            )
            await _refuse(error, scope, receive, send)
            return
        began = clock.monotonic()
        try:
            body = await _body(scope, receive)
        except (TooLarge, TooSlow, BadSpec) as error:
            await _refuse(error, scope, receive, send)
            return
        if body is None:
            return  # the client went away
        await self.app(scope, _replay(body, receive), _logging(send, scope, began))


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    is_small = LIMIT in _state(scope)
    limit: int = _state(scope).get(LIMIT, MAX_BODY)
    within_s = BODY_JOIN_S if is_small else BODY_S
    length = _text(scope, b"content-length") or ""
    if length.isascii() and length.isdigit() and int(length) > limit:
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
                    break
    except TimeoutError as error:
        raise TooSlow(seconds=within_s) from error
    body = b"".join(pieces)
    edge.require_text(body, "the request")
    return body


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
            message["headers"] = [*message.get("headers", ()), *NEVER_KEPT]
        await send(message)

    return logged


async def _refuse(
    error: SternaError,
    scope: Scope,
    receive: Receive,
    send: Send,
    schemes: Sequence[str] = ("Bearer",),
) -> None:
    # The connection ends: a body that nobody will read may still be on its way.
    refusal = answer(error, {"Connection": "close"})
    for scheme in schemes if error.status == 401 else ():
        refusal.headers.append("WWW-Authenticate", scheme)
    await refusal(scope, receive, send)


def _state(scope: Scope) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state
