"""The storage pools of this host."""

from __future__ import annotations

from fastapi import Response

from sterna.api import roles
from sterna.api.answers import answer
from sterna.api.roles import needs, reads
from sterna.api.services import Here, Services
from sterna.api.views import PoolView
from sterna.model.access import Role
from sterna.model.edge import dump
from sterna.model.host import Pool, PoolFacts

router = roles.router(prefix="/v1/pools", tags=["pools"])


def _view(facts: PoolFacts, here: Services) -> dict[str, object]:
    users = sorted(here.vms.users_of_pool(facts.pool.name))
    return {**dump(facts), "users": users}


@router.get("", response_model=list[PoolView])
@reads()
async def every(here: Here) -> Response:
    """All pools, by name, with their space of now."""
    return answer([_view(facts, here) for facts in await here.pools.facts()])


@router.post("", response_model=PoolView, status_code=201)
@needs(Role.ADMIN)
async def create(pool: Pool, here: Here) -> Response:
    """Declare a directory a pool; a shared one joins the pool that is there."""
    made = await here.pools.create(pool)
    view = _view(await here.pools.facts_of(made.name), here)
    return answer(view, 201, f"/v1/pools/{made.name}")


@router.delete("/{name}", status_code=204)
@needs(Role.ADMIN)
async def delete(name: str, here: Here) -> Response:
    """Forget a pool that no VM uses; its files stay."""
    await here.pools.delete(name, here.vms.users_of_pool)
    return Response(status_code=204)
