"""Files of disks: copies that moves have kept, and whether all images are well."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from sterna.api import roles
from sterna.api.answers import answer
from sterna.api.roles import needs, reads
from sterna.api.services import Here
from sterna.api.views import DiskCheckView, KeptView
from sterna.errors import KeptNotFound, NoSuchPath
from sterna.model.access import Role
from sterna.model.edge import dump
from sterna.vms.inspection import CheckWishes

router = roles.router(prefix="/v1", tags=["disks"])


@router.get("/kept", response_model=list[KeptView])
@reads()
async def kept(here: Here) -> Response:
    """All kept copies of this host, the oldest first."""
    return answer([dump(copy) for copy in here.kept.list()] if here.kept else [])


@router.delete("/kept/{copy}", status_code=204)
@needs(Role.OPERATOR)
async def discard(copy: str, here: Here) -> Response:
    """Delete a kept copy and its files."""
    if here.kept is None:
        raise KeptNotFound(copy=copy)
    await here.kept.discard(copy)
    return Response(status_code=204)


@router.post("/disk-check", response_model=DiskCheckView)
@reads()
async def check(here: Here, wishes: Annotated[CheckWishes | None, Body()] = None) -> Response:
    """Hold all images of VMs against their records; nothing is changed."""
    if here.inspections is None:
        raise NoSuchPath(path="disk-check")
    return answer(await here.inspections.run(wishes or CheckWishes()))
