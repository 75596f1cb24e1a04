"""Guardians: which hosts open the keys of VMs with secrets."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import Response

from sterna.api import roles
from sterna.api.answers import answer
from sterna.api.roles import needs, reads
from sterna.api.services import Here
from sterna.api.views import GuardianView, VMView
from sterna.model.access import Role
from sterna.model.secret import GuardianRecord, GuardianWishes

router = roles.router(prefix="/v1", tags=["guardians"])


@router.get("/guardians", response_model=list[GuardianView])
@reads()
async def every(here: Here) -> Response:
    """This host's own guardian first, then those that it knows. Public keys, no secrets."""
    return answer([asdict(one) for one in here.guardians.all()])


@router.post("/guardians", response_model=GuardianView, status_code=201)
@needs(Role.ADMIN)
async def add(record: GuardianRecord, here: Here) -> Response:
    """Know the guardian of another host by a name. It opens nothing yet."""
    made = await here.guardians.add(record)
    return answer(asdict(made), 201)


@router.delete("/guardians/{name}", status_code=204)
@needs(Role.ADMIN)
async def forget(name: str, here: Here) -> Response:
    """Know it no more; VMs for which it is authorized keep that."""
    await here.guardians.forget(name)
    return Response(status_code=204)


@router.post("/vms/{vm}:authorize", response_model=VMView)
@needs(Role.ADMIN)
async def authorize(vm: str, wishes: GuardianWishes, here: Here) -> Response:
    """Let a guardian open the keys of a VM, so that the VM may move to its host."""
    found = await here.guardians.authorize(vm, wishes.guardian)
    return answer(here.vms.view(found.id))


@router.post("/vms/{vm}:revoke", response_model=VMView)
@needs(Role.ADMIN)
async def revoke(vm: str, wishes: GuardianWishes, here: Here) -> Response:
    """Let it open them no more."""
    found = await here.guardians.revoke(vm, wishes.guardian)
    return answer(here.vms.view(found.id))
