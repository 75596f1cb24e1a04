"""Log-in and log-out of people in browsers."""

from __future__ import annotations

import re
from typing import Any

from fastapi import Request, Response

from sterna.api import roles
from sterna.api.access import COOKIE, ORIGIN
from sterna.api.answers import answer
from sterna.api.roles import door, needs
from sterna.api.services import Here
from sterna.api.views import SessionView
from sterna.errors import AuditNotWritten, SternaError
from sterna.model.access import LogIn, Role
from sterna.security.sessions import LONGEST_S

router = roles.router(prefix="/v1/sessions", tags=["sessions"])
COOKIE_RULES = "Path=/; Secure; HttpOnly; SameSite=Strict"
_MAX_COOKIE = int(LONGEST_S)


@router.post("", response_model=SessionView, status_code=201)
@door("nobody")
async def log_in(wishes: LogIn, here: Here, request: Request) -> Response:
    """Begin a session: a cookie, and `csrf`, which goes as X-CSRF-Token with whatever changes something."""
    origin = getattr(request.state, ORIGIN, "")
    fields: dict[str, Any] = {
        "who": _known(wishes.user, here.authority.accounts.users),
        "from": origin,
        "method": "POST",
        "path": "/v1/sessions",
    }
    try:
        name, session = await here.authority.log_in(wishes.user, wishes.password, origin)
    except SternaError as error:
        request.state.is_told = True
        await here.audit.refused({**fields, "status": error.status, "code": error.code})
        raise
    try:
        await here.audit.told({**fields, "status": 201})
    except AuditNotWritten:
        here.authority.sessions.end(session.key)
        raise
    user = here.authority.accounts.user(session.user)
    view = {"user": user.name, "role": user.role, "tag": user.tag, "csrf": session.csrf}
    response = answer(view, 201)
    response.headers["Set-Cookie"] = f"{COOKIE}={name}; Max-Age={_MAX_COOKIE}; {COOKIE_RULES}"
    return response


@router.delete("/current", status_code=204)
@needs(Role.VIEWER, tagged=True)
async def log_out(here: Here, request: Request) -> Response:
    """End the session of this request."""
    here.authority.end(roles.principal(request))
    cookie = f"{COOKIE}=; Max-Age=0; {COOKIE_RULES}"
    return Response(status_code=204, headers={"Set-Cookie": cookie})


def _known(user: str, users: dict[str, Any]) -> str:
    """People type passwords where names belong: only names that are users' are written down."""
    return user if re.fullmatch(r"[a-z0-9.-]{1,63}", user) and user in users else "unknown user"
