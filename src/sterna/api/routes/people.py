"""Who may do what here: users, API tokens, and who asks."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from sterna.api import roles
from sterna.api.access import ORIGIN
from sterna.api.answers import answer
from sterna.api.roles import Record, needs, reads
from sterna.api.services import Here
from sterna.api.views import MeView, NewTokenView, TokenView, UserView
from sterna.errors import NotAllowed
from sterna.model.access import (
    PasswordWishes,
    Role,
    TokenRecord,
    TokenWishes,
    UserChanges,
    UserRecord,
    UserWishes,
)
from sterna.security import identity

router = roles.router(prefix="/v1", tags=["people"])


@router.get("/me", response_model=MeView)
@reads(tagged=True, hosts=True)
async def me(request: Request, here: Here) -> Response:
    """Who asks, as this host sees it, and what they may do."""
    who = roles.principal(request)
    session = here.authority.sessions.by_key(who.key) if who.kind == "user" else None
    view = {
        "who": who.text,
        "kind": who.kind,
        "role": who.role,
        "tag": who.tag,
        "host": here.name,
        "csrf": session.csrf if session else "",
    }
    return answer(view)


@router.get("/users", response_model=list[UserView])
@reads(Role.ADMIN)
async def users(here: Here) -> Response:
    """All users, by name."""
    return answer([_user(one) for _, one in sorted(here.authority.accounts.users.items())])


@router.post("/users", response_model=UserView, status_code=201)
@needs(Role.ADMIN)
async def create_user(wishes: UserWishes, here: Here) -> Response:
    """Let a person, or a program with a certificate, in."""
    made = await here.authority.accounts.create_user(wishes)
    return answer(_user(made), 201, f"/v1/users/{made.name}")


@router.patch("/users/{name}", response_model=UserView)
@needs(Role.ADMIN)
async def change_user(name: str, changes: UserChanges, here: Here) -> Response:
    """Change what a user may do, or is known by. It has to log in again."""
    return answer(_user(await here.authority.accounts.change_user(name, changes)))


@router.delete("/users/{name}", status_code=204)
@needs(Role.ADMIN, record=Record.URGENT)
async def delete_user(name: str, here: Here) -> Response:
    """Let that user in no more, at once."""
    await here.authority.accounts.delete_user(name)
    return Response(status_code=204)


@router.put("/users/{name}/password", response_model=UserView)
@needs(Role.VIEWER, tagged=True)
async def set_password(name: str, wishes: PasswordWishes, here: Here, request: Request) -> Response:
    """Another password; all sessions of the user end. Administrators set anybody's, users their own."""
    who = roles.principal(request)
    if not (who.has(Role.ADMIN) and not who.tag):
        if who.kind != "user" or who.name != name:
            fix = "Ask an administrator of this host: sterna user passwd"
            raise NotAllowed(what="this password", reason="it is another user's", fix=fix)
        origin = getattr(request.state, ORIGIN, "")
        await here.authority.check(name, wishes.current, origin)
    changed = await here.authority.accounts.set_password(name, wishes)
    await here.authority.lockout.forgive(name)
    return answer(_user(changed))


@router.get("/tokens", response_model=list[TokenView])
@reads(Role.ADMIN)
async def tokens(here: Here) -> Response:
    """All API tokens, by name; those that have expired, too."""
    found = here.authority.accounts.tokens.values()
    return answer([_token(one) for one in sorted(found, key=lambda one: one.name)])


@router.post("/tokens", response_model=NewTokenView, status_code=201)
@needs(Role.ADMIN)
async def create_token(wishes: TokenWishes, here: Here, request: Request) -> Response:
    """Make a token for a program. It is shown once; this host keeps only a hash of it."""
    by = roles.principal(request).text
    text, made = await here.authority.accounts.create_token(wishes, by)
    return answer({**_token(made), "token": text}, 201)


@router.delete("/tokens/{name}", status_code=204)
@needs(Role.ADMIN, record=Record.URGENT)
async def revoke(name: str, here: Here) -> Response:
    """Take a token back, at once."""
    await here.authority.accounts.revoke(name)
    return Response(status_code=204)


def _user(record: UserRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "role": record.role,
        "tag": record.tag,
        "has_password": bool(record.password),
        "certificates": [identity.fingerprint(pem) for pem in record.certificates],
        "kerberos": record.kerberos,
        "created": record.created,
    }


def _token(record: TokenRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "id": record.id,
        "role": record.role,
        "tag": record.tag,
        "created": record.created,
        "expires": record.expires,
        "by": record.by,
    }
