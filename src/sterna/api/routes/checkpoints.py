"""Checkpoints of a VM, and its saved state."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from sterna.api import roles
from sterna.api.answers import accepted, answer
from sterna.api.roles import needs, reads
from sterna.api.services import Checkpoints, Here, Services
from sterna.api.views import CheckpointView, VMView
from sterna.errors import NoSuchPath
from sterna.model.access import Role
from sterna.model.checkpoint import ApplyWishes, CheckpointWishes, RenameWishes
from sterna.model.operation import Operation

router = roles.router(prefix="/v1/vms", tags=["checkpoints"])


def _points(here: Services) -> Checkpoints:
    if here.checkpoints is None:
        raise NoSuchPath(path="checkpoints")
    return here.checkpoints


@router.get("/{vm}/checkpoints", response_model=list[CheckpointView])
@reads(tagged=True)
async def every(vm: str, here: Here) -> Response:
    """All checkpoints of a VM, parents before children."""
    return answer(_points(here).list(vm))


@router.post("/{vm}/checkpoints", response_model=Operation, status_code=202)
@needs(Role.OPERATOR, tagged=True)
async def create(
    vm: str, here: Here, wishes: Annotated[CheckpointWishes | None, Body()] = None
) -> Response:
    """Make one: disks and, of a VM that runs, memory; the guest pauses no longer than in a move."""
    return accepted(_points(here).create(vm, wishes or CheckpointWishes()))


@router.post("/{vm}/checkpoints/{checkpoint}:apply", response_model=Operation, status_code=202)
@needs(Role.OPERATOR, tagged=True)
async def apply(
    vm: str, checkpoint: str, here: Here, wishes: Annotated[ApplyWishes | None, Body()] = None
) -> Response:
    """Go back to it; what the VM is now is lost unless it is kept."""
    return accepted(_points(here).apply(vm, checkpoint, wishes or ApplyWishes()))


@router.post("/{vm}/checkpoints/{checkpoint}:rename", response_model=CheckpointView)
@needs(Role.OPERATOR, tagged=True)
async def rename(vm: str, checkpoint: str, wishes: RenameWishes, here: Here) -> Response:
    """Give it another name."""
    return answer(await _points(here).rename(vm, checkpoint, wishes.name))


@router.delete("/{vm}/checkpoints/{checkpoint}", response_model=Operation, status_code=202)
@needs(Role.OPERATOR, tagged=True)
async def delete(vm: str, checkpoint: str, here: Here, subtree: bool = False) -> Response:
    """Delete it, or all that came after it too; its images are merged while the guest runs."""
    return accepted(_points(here).delete(vm, checkpoint, subtree=subtree))


@router.post("/{vm}:save", response_model=Operation, status_code=202)
@needs(Role.OPERATOR, tagged=True)
async def save(vm: str, here: Here) -> Response:
    """Write its memory into a file and switch it off; it goes on from there when it is started."""
    return accepted(_points(here).save(vm))


@router.post("/{vm}:restore", response_model=Operation, status_code=202)
@needs(Role.OPERATOR, tagged=True)
async def restore(vm: str, here: Here) -> Response:
    """Let a saved VM go on."""
    return accepted(_points(here).restore(vm))


@router.post("/{vm}:discard", response_model=VMView)
@needs(Role.OPERATOR, tagged=True)
async def discard(vm: str, here: Here) -> Response:
    """Throw the saved state away; the VM boots when it is started."""
    return answer(await _points(here).discard(vm))
