"""What this API is, and the hosts it knows."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from sterna import __version__
from sterna.api import roles
from sterna.api.answers import answer
from sterna.api.roles import needs, reads
from sterna.api.services import Here
from sterna.api.views import HostView, Root
from sterna.model.access import Role
from sterna.model.cpu import Baseline
from sterna.model.host import HostFacts
from sterna.model.settings import HostSettings, SettingsChanges

API = 1
EXTENSIONS: tuple[str, ...] = ()  # names of what came after the first release of v1

router = roles.router(prefix="/v1", tags=["hosts"])


@router.get("", response_model=Root)
@reads(tagged=True, hosts=True)
async def root(here: Here) -> Response:
    """Who answers, and what it can do."""
    return answer(
        {"api": API, "extensions": list(EXTENSIONS), "name": here.name, "version": __version__}
    )


@router.get("/host", response_model=HostFacts)
@reads(hosts=True)
async def host(here: Here) -> Response:
    """The facts of this host, gathered now."""
    return answer(await here.facts())


@router.patch("/host/settings", response_model=HostSettings)
@needs(Role.ADMIN)
async def settings(changes: SettingsChanges, here: Here) -> Response:
    """Change what this host does about moves, at once and for good."""
    return answer(await here.settings.change(changes))


@router.get("/baseline", response_model=Baseline)
@reads()
async def baseline(here: Here, host: Annotated[list[str] | None, Query()] = None) -> Response:
    """The processor that these hosts share; without `host`, this one and all that it knows."""
    return answer(await here.fleet.baseline(host or ()))


@router.get("/hosts", response_model=list[HostView])
@reads()
async def hosts(here: Here) -> Response:
    """This host and its peers, and whether they answer."""
    return answer(list(await here.hosts()))


@router.get("/hosts/{name}", response_model=HostFacts)
@reads()
async def one_host(name: str, here: Here) -> Response:
    """The facts of this host or of a peer, asked now."""
    facts = await (here.facts() if name == here.name else here.peer_facts(name))
    return answer(facts)
