"""Which hosts this one trusts: tokens, peers, and this host's own certificate."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Request, Response

from sterna.api import roles
from sterna.api.access import CERTIFICATE
from sterna.api.answers import answer
from sterna.api.roles import Record, between_hosts, door, needs
from sterna.api.services import Here
from sterna.api.views import DistrustView, InvitationView, PeerView, RotationView
from sterna.model import edge
from sterna.model.access import Role
from sterna.model.trust import (
    Announced,
    InviteWishes,
    JoinRequest,
    JoinWishes,
    PeerChanges,
    PeerRecord,
    RotateWishes,
)
from sterna.security import identity

router = roles.router(prefix="/v1", tags=["trust"])
between = roles.router(prefix="/v1", tags=["pairing"])  # what the hosts say to each other about it


@router.post("/invitations", status_code=201, response_model=InvitationView)
@needs(Role.ADMIN)
async def invite(wishes: InviteWishes, here: Here) -> Response:
    """A one-time token: who gives it to POST /v1/peers of another host pairs the two."""
    token = here.pairing.invite(wishes)
    view = {
        "token": str(token),
        "name": token.name,
        "url": token.url,
        "fingerprint": token.fingerprint,
        "expires": token.expires,
    }
    return answer(view, 201)


@router.post("/peers", status_code=201, response_model=PeerView)
@needs(Role.ADMIN)
async def join(wishes: JoinWishes, here: Here) -> Response:
    """Let this host and the one that made the token trust each other. May be repeated."""
    return answer(_view(await here.pairing.join(wishes)), 201)


@router.patch("/peers/{name}", response_model=PeerView)
@needs(Role.ADMIN)
async def change(name: str, changes: PeerChanges, here: Here) -> Response:
    """That host is at another address now, or may do more or less here."""
    return answer(_view(await here.pairing.change(name, changes)))


@router.delete("/peers/{name}", response_model=DistrustView)
@needs(Role.ADMIN, record=Record.URGENT)
async def distrust(name: str, here: Here) -> Response:
    """Trust that host no more, at once; moves under way with it are undone."""
    return answer({"operations": await here.pairing.distrust(name)})


@router.post("/host:rotate", response_model=RotationView)
@needs(Role.ADMIN)
async def rotate(wishes: RotateWishes, here: Here) -> Response:
    """Give this host a new key and certificate; its peers are told before it is used."""
    return answer(await here.pairing.rotate(wishes))


@between.post("/pairing")
@door("nobody", record=Record.AFTER)
async def pairing(request: Request, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """A host that was given a token asks to be trusted. The only door for those whom nobody knows."""
    asked = edge.parse(JoinRequest, body, "join request")
    return dict(request.app.state.services.pairing.redeem(asked))


@between.post("/peer/paired")
@door("guest", record=Record.AFTER)
async def paired(request: Request) -> dict[str, Any]:
    """It trusts this host, and shows so by its certificate. May be repeated."""
    shown = getattr(request.state, CERTIFICATE, "")
    return dict(await request.app.state.services.pairing.paired(shown))


@between.post("/peer/certificate")
@between_hosts(Record.AFTER)
async def announced(request: Request, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """The certificate that the caller will show from some moment on."""
    new = edge.parse(Announced, body, "announcement")
    caller = roles.principal(request).name
    await request.app.state.services.pairing.announced(caller, new.certificate)
    return {"name": request.app.state.services.name}


def _view(record: PeerRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "url": record.url,
        "fingerprint": identity.fingerprint(record.certificate),
        "ends": identity.end_of(record.certificate).isoformat(),
        "since": record.since,
        "role": record.role,
    }
