"""The HTTP surface of one host, put together. Thin: it parses, asks the services, and answers."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI

from sterna import __version__
from sterna.api import problems, roles
from sterna.api.access import Gate
from sterna.api.routes import (
    audit,
    checkpoints,
    disks,
    events,
    guardians,
    operations,
    peer,
    people,
    pools,
    port,
    root,
    sessions,
    several,
    switches,
    trust,
    vms,
)
from sterna.api.services import Services
from sterna.api.views import Problem

PUBLIC = (
    root, trust, people, sessions, audit, vms, guardians, several, checkpoints, switches, pools, disks,
    port, operations, events,
)  # fmt: skip
SCHEMA = "/v1/openapi.json"
DESCRIPTION = (
    "Hosts, VMs and moves. Long work is an operation: 202, Location, then /v1/operations/{id}. "
    "Errors are RFC 9457 problem details with a stable `code` and a `hint`."
)


def build(services: Services) -> FastAPI:
    """The application; it refuses every request that no listener of `sterna.api.listeners` vouches for.

    `state.closing`, once set, ends long answers: event streams and waits.
    """
    app = FastAPI(
        title="Sterna",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=SCHEMA,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": Problem, "description": "Problem"}},  # see _describe
        generate_unique_id_function=lambda route: f"{route.tags[0]}.{route.name}",
    )
    app.state.services = services
    app.state.closing = asyncio.Event()
    routers = [*(module.router for module in PUBLIC), peer.router, trust.between]
    roles.require_guards(app, routers, but=SCHEMA)
    for router in routers:
        app.include_router(router, include_in_schema=router not in (peer.router, trust.between))
    problems.install(app)
    _describe(app)
    app.add_middleware(Gate)
    return app


def _describe(app: FastAPI) -> None:
    """Problems are described with their own media type, which FastAPI cannot be told."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        is_made = app.openapi_schema is not None
        schema = plain()
        for path in schema["paths"].values() if not is_made else ():
            for operation in path.values():
                problem = operation["responses"]["default"]
                problem["content"] = {problems.MEDIA: problem["content"]["application/json"]}
        return schema

    app.openapi = described  # type: ignore[method-assign]
