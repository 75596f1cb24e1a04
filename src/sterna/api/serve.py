"""The API as a host's configuration wants it: always on the Unix socket, by HTTPS if it listens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from sterna import log
from sterna.api.listeners import HTTPS, Listening, listen
from sterna.config import Config
from sterna.security import identity


@contextlib.asynccontextmanager
async def serve(app: FastAPI, settings: Config) -> AsyncIterator[Listening]:
    """Serve while the context lasts. Raises ListenFailed, or BadConfig for the token."""
    async with listen(app, settings.socket, _https(settings)) as listening:
        yield listening


def _https(settings: Config) -> HTTPS | None:
    wanted = settings.listen
    if wanted is None:
        return None
    own = identity.ensure(settings.state_dir / "identity", settings.name, wanted.address)
    token = identity.read_token(settings.token_file)
    log.hide(token)
    return HTTPS(
        address=wanted.address,
        port=wanted.port,
        certificate=wanted.certificate or own.certificate,
        key=wanted.key or own.key,
        token=token,
        more=settings.migration_addresses,
    )
