"""Moves of several VMs as one operation; a host emptied, and filled again. Each VM's own move is an operation with it as `parent`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from sterna.api import roles
from sterna.api.answers import accepted, answer
from sterna.api.roles import needs, reads
from sterna.api.services import Drains, Here, Several
from sterna.model.access import Role
from sterna.model.operation import Operation
from sterna.model.several import DrainWishes, ResumeWishes, SeveralPlan, SeveralWishes

router = roles.router(prefix="/v1", tags=["moves"])


@router.post("/moves", response_model=Operation, status_code=202)
@needs(Role.MIGRATOR)
async def move(wishes: SeveralWishes, here: Here) -> Response:
    """Move several VMs to one host. One that fails stops no other; `vms` of the result tells of each."""
    several: Several = here.several
    return accepted(await several.begin(wishes))


@router.post("/moves:check", response_model=SeveralPlan)
@reads()
async def check(wishes: SeveralWishes, here: Here) -> Response:
    """What would become of each of them. Nothing happens."""
    several: Several = here.several
    return answer(await several.plan(wishes))


@router.post("/host/drain", response_model=Operation, status_code=202)
@needs(Role.MIGRATOR)
async def drain(here: Here, wishes: Annotated[DrainWishes | None, Body()] = None) -> Response:
    """Empty this host. From now on, until `resume`, it takes and starts no VM."""
    drains: Drains = here.drains
    return accepted(await drains.begin(wishes or DrainWishes()))


@router.post("/host/drain:check", response_model=SeveralPlan)
@reads()
async def check_drain(here: Here, wishes: Annotated[DrainWishes | None, Body()] = None) -> Response:
    """Where each VM would go, and why one cannot. Nothing happens."""
    drains: Drains = here.drains
    return answer(await drains.plan(wishes or DrainWishes()))


@router.post("/host/resume", response_model=Operation, status_code=202)
@needs(Role.MIGRATOR)
async def resume(here: Here, wishes: Annotated[ResumeWishes | None, Body()] = None) -> Response:
    """Take and start VMs again, and bring back those that a drain has sent away."""
    drains: Drains = here.drains
    return accepted(await drains.resume(wishes or ResumeWishes()))


@router.post("/host/resume:check", response_model=SeveralPlan)
@reads()
async def check_resume(
    here: Here, wishes: Annotated[ResumeWishes | None, Body()] = None
) -> Response:
    """Which VMs would come back. Nothing happens."""
    drains: Drains = here.drains
    return answer(await drains.plan_resume(wishes or ResumeWishes()))
