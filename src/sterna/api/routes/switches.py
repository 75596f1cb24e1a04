"""The switches of this host."""

from __future__ import annotations

from fastapi import Response

from sterna.api import roles
from sterna.api.answers import answer
from sterna.api.roles import needs, reads
from sterna.api.services import Here, Services
from sterna.api.views import SwitchView
from sterna.model.access import Role
from sterna.model.edge import dump
from sterna.model.host import Switch, SwitchChanges, SwitchFacts

router = roles.router(prefix="/v1/switches", tags=["switches"])


def _view(facts: SwitchFacts, here: Services) -> dict[str, object]:
    users = sorted(here.vms.users_of_switch(facts.switch.name))
    return {**dump(facts), "users": users}


@router.get("", response_model=list[SwitchView])
@reads()
async def every(here: Here) -> Response:
    """All switches, by name."""
    return answer([_view(facts, here) for facts in await here.switches.facts()])


@router.post("", response_model=SwitchView, status_code=201)
@needs(Role.ADMIN)
async def create(switch: Switch, here: Here) -> Response:
    """Make a switch; its bridge appears at once and after each boot."""
    made = await here.switches.create(switch)
    view = _view(await here.switches.facts_of(made.name), here)
    return answer(view, 201, f"/v1/switches/{made.name}")


@router.get("/{name}", response_model=SwitchView)
@reads()
async def one(name: str, here: Here) -> Response:
    """One switch."""
    return answer(_view(await here.switches.facts_of(name), here))


@router.patch("/{name}", response_model=SwitchView)
@needs(Role.ADMIN)
async def change(name: str, changes: SwitchChanges, here: Here) -> Response:
    """Change a switch under the VMs that are plugged in; refused if that would cut them off."""
    made = await here.switches.change(name, changes, here.vms.running_on_switch)
    return answer(_view(await here.switches.facts_of(made.name), here))


@router.delete("/{name}", status_code=204)
@needs(Role.ADMIN)
async def delete(name: str, here: Here) -> Response:
    """Remove a switch that no VM uses."""
    await here.switches.delete(name, here.vms.users_of_switch)
    return Response(status_code=204)
