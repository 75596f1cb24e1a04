"""Copies of disks that moves have kept."""

from __future__ import annotations

from fastapi import APIRouter, Response

from sterna.api.answers import answer
from sterna.api.services import Here
from sterna.api.views import KeptView
from sterna.errors import KeptNotFound
from sterna.model.edge import dump

router = APIRouter(prefix="/v1/kept", tags=["disks"])


@router.get("", response_model=list[KeptView])
async def kept(here: Here) -> Response:
    """All kept copies of this host, the oldest first."""
    return answer([dump(copy) for copy in here.kept.list()] if here.kept else [])


@router.delete("/{copy}", status_code=204)
async def discard(copy: str, here: Here) -> Response:
    """Delete a kept copy and its files."""
    if here.kept is None:
        raise KeptNotFound(copy=copy)
    await here.kept.discard(copy)
    return Response(status_code=204)
