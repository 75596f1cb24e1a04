"""The API as a host's configuration wants it: always on the Unix socket, by HTTPS if it listens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from sterna.api.listeners import HTTPS, Listening, listen
from sterna.config import Config, Listen
from sterna.security.audit import Audit
from sterna.security.authority import Authority
from sterna.security.trust import Trust
from sterna.security.web import Web


@contextlib.asynccontextmanager
async def serve(
    app: FastAPI, settings: Config, trust: Trust, authority: Authority, audit: Audit
) -> AsyncIterator[Listening]:
    """Serve while the context lasts. Raises ListenFailed, BadConfig."""
    https = _https(settings, trust)
    async with listen(app, settings.socket, authority, audit, https) as listening:
        yield listening


def _https(settings: Config, trust: Trust) -> HTTPS | None:
    wanted = settings.listen
    if wanted is None:
        return None
    return HTTPS(
        address=wanted.address,
        port=wanted.port,
        trust=trust,
        web=_web(wanted),
        more=settings.migration_addresses,
    )


def _web(listen: Listen) -> Web | None:
    if listen.web_certificate is None or listen.web_key is None:
        return None
    return Web(listen.web_certificate, listen.web_key)
