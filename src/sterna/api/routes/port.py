"""VMs as folders of this host: exported and imported."""

from __future__ import annotations

from fastapi import Response

from sterna.api import roles
from sterna.api.answers import accepted, answer
from sterna.api.roles import needs, reads
from sterna.api.services import Here, Ports, Services
from sterna.api.views import CheckView
from sterna.errors import NoSuchPath
from sterna.model.access import Role
from sterna.model.operation import Operation
from sterna.model.port import ExportWishes, ImportWishes

router = roles.router(prefix="/v1", tags=["port"])


def _ports(here: Services) -> Ports:
    if here.ports is None:
        raise NoSuchPath(path="imports")
    return here.ports


@router.post("/vms/{vm}/exports", response_model=Operation, status_code=202)
@needs(Role.ADMIN)
async def export(vm: str, wishes: ExportWishes, here: Here) -> Response:
    """Write a VM into a new folder of this host: spec, disks, checkpoints, memory."""
    return accepted(await _ports(here).export(vm, wishes))


@router.post("/imports", response_model=Operation, status_code=202)
@needs(Role.ADMIN)
async def import_(wishes: ImportWishes, here: Here) -> Response:
    """Make a VM of an exported folder."""
    return accepted(await _ports(here).begin(wishes))


@router.post("/imports:check", response_model=list[CheckView])
@reads(Role.ADMIN)
async def check(wishes: ImportWishes, here: Here) -> Response:
    """What stands in the way of an import; its files are read and compared with their hashes."""
    return answer(await _ports(here).check(wishes))
