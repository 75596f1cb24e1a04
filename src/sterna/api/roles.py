"""Who may ask a route, declared beside it, and what is written down of those who do.

    @router.post("/{vm}:start", response_model=VMView)
    @needs(Role.OPERATOR, tagged=True)
    async def start(...)

A route without such a line cannot be made: the program does not start. What is said there is what
is enforced, before the body is even parsed, and is in the OpenAPI document as `x-sterna-needs`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from sterna import actor
from sterna.api.access import BEHALF, ORIGIN, PRINCIPAL, REASON, TICKETS
from sterna.api.services import Services
from sterna.errors import (
    AuditNotWritten,
    NotFound,
    OperationNotFound,
    RoleTooLow,
    SternaError,
    VMNotFound,
)
from sterna.model.access import Principal, Role
from sterna.security.audit import short

F = TypeVar("F", bound=Callable[..., Any])
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_NEED = "__sterna_need__"
_CUT_OFF = 499


class Record(Enum):
    """What the audit holds of a request that is let in."""

    NOTHING = "nothing"  # it only looks, or its handler writes it down itself
    FIRST = "first"  # before it is done, or it is not done; and its outcome
    URGENT = "urgent"  # as FIRST, but it is done even if that cannot be written: trust that ends
    AFTER = "after"  # its outcome, soon: the audit never delays nor stops it


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Whom a route answers. A role that is limited to a tag counts only where `tagged` says that
    the route shows and touches nothing but VMs with that tag, whose paths name them: {vm} or
    {operation}, or whose handlers filter what they list.
    """

    role: Role | None = None  # None: nobody by a role
    tagged: bool = False
    hosts: bool = False  # hosts that this one trusts, whatever their role
    doors: tuple[str, ...] = ()  # kinds of those who are no principals yet
    record: Record = Record.NOTHING

    @property
    def text(self) -> str:
        """For the OpenAPI document and errors."""
        if self.doors:
            return "nothing: what it brings proves who asks"
        if self.hosts and self.role is Role.ADMIN:
            return "a host that is trusted, or root"
        return f"the role {self.role}" + (", or a host that is trusted" if self.hosts else "")

    def admits(self, who: Principal) -> bool:
        if who.kind in self.doors or (self.hosts and who.kind == "host"):
            return True
        if self.hosts and self.role is Role.ADMIN and who.kind != "local":
            return False  # what hosts say to each other is no tool for people and programs
        if who.tag and not self.tagged:
            return False
        return self.role is not None and who.has(self.role)


def needs(
    role: Role, *, tagged: bool = False, hosts: bool = False, record: Record | None = None
) -> Callable[[F], F]:
    """Whoever has that role; with `hosts`, every trusted host too."""
    return _declare(Need(role=role, tagged=tagged, hosts=hosts, record=record or Record.FIRST))


def reads(
    role: Role = Role.VIEWER, *, tagged: bool = False, hosts: bool = False
) -> Callable[[F], F]:
    """The same for what only looks: nothing is written down unless it is refused."""
    return _declare(Need(role=role, tagged=tagged, hosts=hosts))


def between_hosts(record: Record = Record.NOTHING) -> Callable[[F], F]:
    """Only hosts that are trusted, and root of this one."""
    return _declare(Need(role=Role.ADMIN, hosts=True, record=record))


def door(*kinds: str, record: Record = Record.NOTHING) -> Callable[[F], F]:
    """For those who have yet to prove who they are; root and trusted hosts too."""
    return _declare(Need(role=Role.ADMIN, hosts=True, doors=kinds, record=record))


def _declare(need: Need) -> Callable[[F], F]:
    def mark(endpoint: F) -> F:
        setattr(endpoint, _NEED, need)
        return endpoint

    return mark


class Guarded(APIRoute):
    """A route that says who may ask it."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        found = getattr(endpoint, _NEED, None)
        if not isinstance(found, Need):
            raise TypeError(f"route {path} does not say who may ask it: see sterna.api.roles")
        self.need = found
        extra = {**(more.pop("openapi_extra", None) or {}), "x-sterna-needs": found.text}
        super().__init__(path, endpoint, openapi_extra=extra, **more)

    def get_route_handler(self) -> Handler:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await _guard(self.need, inner, request)

        return handle


def router(**more: Any) -> APIRouter:
    """As APIRouter, of guarded routes."""
    return APIRouter(route_class=Guarded, **more)


def require_guards(app: FastAPI, routers: Iterable[APIRouter], but: str) -> None:
    """Before they are included: raises TypeError for a route that anybody could ask.

    `but` is the path of a route of `app` itself that all who are somebody may ask.
    """
    for route in (one for router in routers for one in router.routes):
        if not isinstance(route, Guarded):
            raise TypeError(
                f"{route} does not say who may ask it: make its router with roles.router"
            )
    for own in app.routes:
        if getattr(own, "path", "") != but:
            raise TypeError(f"{own} does not say who may ask it")


# ---- in handlers ---------------------------------------------------------------------------


def principal(request: Request) -> Principal:
    """Who asks."""
    found: Principal = getattr(request.state, PRINCIPAL)
    return found


def require(request: Request, role: Role, what: str) -> None:
    """For what only a part of a route's requests needs. Raises RoleTooLow."""
    who = principal(request)
    if not who.has(role) or who.tag:
        here: Services = request.app.state.services
        needed = f"the role {role}" + (" for all VMs" if who.tag else "")
        raise RoleTooLow(what=what, host=here.name, needed=needed, who=who.text, grant=who.grant)


def may_see(request: Request, view: dict[str, Any]) -> bool:
    """Whether the caller may know of that VM, by its view."""
    tag = principal(request).tag
    return not tag or tag in ((view.get("spec") or {}).get("tags") or ())


def may_see_vm(request: Request, ref: str) -> bool:
    """The same by name or id; a VM that is not here is nobody's."""
    if not principal(request).tag:
        return True
    here: Services = request.app.state.services
    try:
        return may_see(request, here.vms.view(ref))
    except NotFound:
        return False


def may_see_operation(request: Request, operation: Any) -> bool:
    """Whether it is of a VM that the caller may see, or its own: a VM that has moved away is gone."""
    who = principal(request)
    own = operation.by and operation.by == who.text
    return not who.tag or own or may_see_vm(request, operation.vm_id or operation.vm)


# ---- around handlers -----------------------------------------------------------------------


async def _guard(need: Need, inner: Handler, request: Request) -> Response:
    who = principal(request)
    here: Services = request.app.state.services
    behalf = getattr(request.state, BEHALF, "")
    by = f"{behalf} through {who.text}" if behalf else who.text
    actor.become(by, getattr(request.state, TICKETS, None))
    fields = _fields(request, who, behalf)
    try:
        await _admit(need, request, who, here)
    except SternaError as error:
        await here.audit.refused({**fields, **_of_error(error)})
        raise
    if need.record is Record.NOTHING:
        return await _watched(inner, request, fields, here)
    if need.record is Record.AFTER:
        return await _late(inner, request, fields, here, is_stranger=who.kind in need.doors)
    try:
        number = await here.audit.begin(fields)
    except AuditNotWritten:
        if need.record is not Record.URGENT:
            raise
        return await _late(inner, request, fields, here)
    try:
        response = await inner(request)
    except Exception as error:
        await here.audit.end(number, _of_exception(error))
        raise
    except asyncio.CancelledError:
        here.audit.note({"of": number, "status": _CUT_OFF})
        raise
    await here.audit.end(number, _of_response(response))
    return response


async def _late(
    inner: Handler,
    request: Request,
    fields: dict[str, Any],
    here: Services,
    *,
    is_stranger: bool = False,
) -> Response:
    """Its outcome is written when that can be."""
    outcome: dict[str, Any] = {"status": _CUT_OFF}
    try:
        response = await inner(request)
        outcome = _of_response(response)
        return response
    except Exception as error:
        outcome = _of_exception(error)
        raise
    finally:
        if is_stranger and outcome["status"] >= 400:  # there may be many
            here.audit.refused_soon({**fields, **outcome})
        else:
            here.audit.note({**fields, **outcome})


async def _watched(
    inner: Handler, request: Request, fields: dict[str, Any], here: Services
) -> Response:
    """What a handler itself refuses is written down, too."""
    try:
        return await inner(request)
    except SternaError as error:
        if error.status in (401, 403, 429) and not getattr(request.state, "is_told", False):
            await here.audit.refused({**fields, **_of_error(error)})
        raise


async def _admit(need: Need, request: Request, who: Principal, here: Services) -> None:
    if not need.admits(who):
        is_limited = who.tag and not need.tagged and need.role and who.has(need.role)
        needed = need.text + (" for all VMs" if is_limited else "")
        what = f"{request.method} {short(request.url.path)}"
        raise RoleTooLow(what=what, host=here.name, needed=needed, who=who.text, grant=who.grant)
    if not who.tag:
        return
    if (vm := request.path_params.get("vm")) is not None and not may_see_vm(request, vm):
        raise VMNotFound(vm=vm, host=here.name)
    if (operation := request.path_params.get("operation")) is not None:
        found = await here.operations.get(operation)
        if not may_see_operation(request, found):
            raise OperationNotFound(operation=operation, host=here.name)


def _fields(request: Request, who: Principal, behalf: str) -> dict[str, Any]:
    """What the audit says of a request besides its outcome."""
    path = request.path_params
    found = {
        "who": behalf or who.text,
        "via": who.text if behalf else "",
        "from": getattr(request.state, ORIGIN, ""),
        "role": str(who.role or ""),
        "tag": who.tag,
        "key": who.key if who.kind in ("token", "host") else "",
        "method": request.method,
        "path": short(request.url.path),
        "vm": short(path.get("vm", "")),
        "operation": short(path.get("operation", "")),
        "reason": getattr(request.state, REASON, ""),
    }
    return {key: value for key, value in found.items() if value}


def _of_response(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = {"status": response.status_code}
    where = response.headers.get("location", "")
    if where.startswith("/v1/operations/"):
        found["operation"] = where.rpartition("/")[2]
    if where.startswith("/v1/vms/"):
        found["vm"] = where.rpartition("/")[2]
    return found


def _of_exception(error: Exception) -> dict[str, Any]:
    if isinstance(error, SternaError):
        return _of_error(error)
    if isinstance(error, RequestValidationError):
        return {"status": 400, "code": "request.invalid"}
    if isinstance(error, HTTPException):
        return {"status": error.status_code}
    return {"status": 500, "code": "internal"}


def _of_error(error: SternaError) -> dict[str, Any]:
    """No text of it: it may repeat what a body held."""
    return {"status": error.status, "code": error.code}
