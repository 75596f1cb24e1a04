"""Moves of several VMs as one operation. Each VM's own move is an operation with it as `parent`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from sterna.api.answers import accepted, answer
from sterna.api.services import Here, Several
from sterna.model.operation import Operation
from sterna.model.several import SeveralPlan, SeveralWishes

router = APIRouter(prefix="/v1", tags=["moves"])


@router.post("/moves", response_model=Operation, status_code=202)
async def move(wishes: SeveralWishes, here: Here) -> Response:
    """Move several VMs to one host. One that fails stops no other; `vms` of the result tells of each."""
    several: Several = here.several
    return accepted(await several.begin(wishes))


@router.post("/moves:check", response_model=SeveralPlan)
async def check(wishes: SeveralWishes, here: Here) -> Response:
    """What would become of each of them. Nothing happens."""
    several: Several = here.several
    return answer(await several.plan(wishes))
