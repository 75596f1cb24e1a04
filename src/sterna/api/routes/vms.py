"""VMs and the actions on them. An action that takes long answers with an operation."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Query, Request, Response

from sterna.api import roles
from sterna.api.answers import accepted, answer
from sterna.api.roles import needs, reads
from sterna.api.services import Here
from sterna.api.views import StopWishes, VMView
from sterna.model.access import Role
from sterna.model.check import MoveReport, StorageReport
from sterna.model.machine import Upgrade, UpgradeWishes
from sterna.model.move import MoveWishes, StorageWishes
from sterna.model.operation import Operation
from sterna.model.vm import CDEjection, CDInsertion, NICChanges, VMChanges, VMSpec

router = roles.router(prefix="/v1/vms", tags=["vms"])


@router.get("", response_model=list[VMView])
@reads(tagged=True)
async def every(here: Here, request: Request) -> Response:
    """All VMs of this host, those with a damaged record too."""
    return answer([view for view in here.vms.list() if roles.may_see(request, view)])


@router.post("", response_model=VMView, status_code=201)
@needs(Role.OPERATOR)
async def create(spec: VMSpec, here: Here, request: Request) -> Response:
    """Make a VM and its disks; it is off. What is not given is filled in, once.

    Files of the host outside its pools (`image`, `boot`) are for administrators.
    """
    if spec.boot is not None or any(disk.image for disk in spec.disks):
        roles.require(request, Role.ADMIN, "using files of the host outside its pools")
    view = await here.vms.create(spec)
    return answer(view, 201, f"/v1/vms/{view['name']}")


@router.get("/{vm}", response_model=VMView)
@reads(tagged=True)
async def one(vm: str, here: Here) -> Response:
    """One VM, by name or id."""
    return answer(here.vms.view(vm))


@router.patch("/{vm}", response_model=VMView)
@needs(Role.OPERATOR, tagged=True)
async def change(vm: str, changes: VMChanges, here: Here, request: Request) -> Response:
    """Change what it is. A guest that runs or is saved sees it from its next start (`cpu_next`).

    Tags say who may do something with it: they are for administrators.
    """
    if changes.tags is not None:
        roles.require(request, Role.ADMIN, "changing tags")
    return answer(await here.fleet.change(vm, changes))


@router.get("/{vm}/upgrade", response_model=Upgrade)
@reads(tagged=True)
async def upgrade(vm: str, here: Here, machine: str = "") -> Response:
    """What a newer version (machine type) would mean: which hosts could not run it any more."""
    return answer(await here.fleet.upgrade(vm, UpgradeWishes(machine=machine)))


@router.post("/{vm}:upgrade-version", response_model=VMView)
@needs(Role.OPERATOR, tagged=True)
async def upgrade_version(
    vm: str, here: Here, wishes: Annotated[UpgradeWishes | None, Body()] = None
) -> Response:
    """Raise the version of a VM that is off. It cannot be lowered again."""
    return answer(await here.fleet.raise_version(vm, wishes or UpgradeWishes()))


@router.patch("/{vm}/nics/{nic}", response_model=VMView)
@needs(Role.OPERATOR)
async def change_nic(vm: str, nic: str, changes: NICChanges, here: Here) -> Response:
    """Plug a NIC into another switch or VLAN, at once if the VM runs: its link stays up."""
    return answer(await here.plugs.change(vm, nic, changes))


@router.post("/{vm}:insert", response_model=VMView)
@needs(Role.OPERATOR)
async def insert(vm: str, wanted: CDInsertion, here: Here) -> Response:
    """Put a CD into a drive, at once if the VM runs; what is in it goes out."""
    return answer(await here.drives.insert(vm, wanted))


@router.post("/{vm}:eject", response_model=VMView)
@needs(Role.OPERATOR, tagged=True)
async def eject(
    vm: str, here: Here, wanted: Annotated[CDEjection | None, Body()] = None
) -> Response:
    """Take a CD out of a drive, at once if the VM runs, though its guest has locked it."""
    return answer(await here.drives.eject(vm, wanted or CDEjection()))


@router.delete("/{vm}", status_code=204)
@needs(Role.OPERATOR, tagged=True)
async def delete(vm: str, here: Here, keep_disks: bool = False) -> Response:
    """Delete a VM that is off, with its disks unless `keep_disks`."""
    await here.vms.delete(vm, keep_disks=keep_disks)
    return Response(status_code=204)


@router.post("/{vm}:start", response_model=VMView)
@needs(Role.OPERATOR, tagged=True)
async def start(vm: str, here: Here) -> Response:
    """Start it; the answer comes when its vCPUs run."""
    return answer(await here.vms.start(vm))


@router.post("/{vm}:pause", response_model=VMView)
@needs(Role.OPERATOR, tagged=True)
async def pause(vm: str, here: Here) -> Response:
    """Stop its vCPUs; its memory stays."""
    return answer(await here.vms.pause(vm))


@router.post("/{vm}:resume", response_model=VMView)
@needs(Role.OPERATOR, tagged=True)
async def resume(vm: str, here: Here) -> Response:
    """Let a paused VM go on."""
    return answer(await here.vms.resume(vm))


@router.post("/{vm}:stop", response_model=Operation, status_code=202)
@needs(Role.OPERATOR, tagged=True)
async def stop(
    vm: str, here: Here, wishes: Annotated[StopWishes | None, Body()] = None
) -> Response:
    """Shut the guest down, or pull its plug."""
    wishes = wishes or StopWishes()
    return accepted(here.vms.stop(vm, force=wishes.force, timeout_s=wishes.timeout_s))


@router.post("/{vm}/moves", response_model=Operation, status_code=202)
@needs(Role.MIGRATOR, tagged=True)
async def move(vm: str, wishes: MoveWishes, here: Here) -> Response:
    """Move it to another host, running or off."""
    return accepted(await here.moves.begin(vm, wishes))


@router.post("/{vm}/moves:check", response_model=MoveReport)
@reads(tagged=True)
async def check_move(vm: str, wishes: MoveWishes, here: Here) -> Response:
    """What would become of that move: every finding, and where each disk goes. Nothing happens."""
    return answer(await here.moves.check(vm, wishes))


@router.post("/{vm}/moves:survey", response_model=list[MoveReport])
@reads(tagged=True)
async def survey(
    vm: str, wishes: MoveWishes, here: Here, host: Annotated[list[str] | None, Query()] = None
) -> Response:
    """The same for each `host`, or for all that this one knows; `target` of the body is not used."""
    return answer(list(await here.moves.survey(vm, wishes, host or ())))


@router.post("/{vm}/storage-moves", response_model=Operation, status_code=202)
@needs(Role.MIGRATOR, tagged=True)
async def move_storage(vm: str, wishes: StorageWishes, here: Here) -> Response:
    """Move its disks to other pools of this host, under the running VM or of one that is off."""
    return accepted(await here.storage_moves.begin(vm, wishes))


@router.post("/{vm}/storage-moves:check", response_model=StorageReport)
@reads(tagged=True)
async def check_storage_move(vm: str, wishes: StorageWishes, here: Here) -> Response:
    """What would become of that move of disks: every finding, and where each goes. Nothing happens."""
    return answer(await here.storage_moves.check(vm, wishes))
