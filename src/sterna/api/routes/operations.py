"""Operations: look, wait, follow, cancel. Looking costs the same after a thousand moves."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response

from sterna.api import roles
from sterna.api.answers import accepted, answer
from sterna.api.events import EventStream, race
from sterna.api.roles import Record, needs, reads
from sterna.api.services import Doubts, Here
from sterna.api.views import Resolution
from sterna.errors import BadSpec, RoleTooLow
from sterna.model.access import Role
from sterna.model.doubt import Doubt
from sterna.model.move import Adjustment
from sterna.model.operation import LogLine, Operation, OperationState
from sterna.model.reservation import MAX_INT

MAX_WAIT_S = 300.0  # proxies and firewalls cut silent connections at about that
MAX_LIST = 1000
OPERATORS = ("stop", "checkpoint", "apply", "merge", "save", "restore")  # kinds that they begin

router = roles.router(prefix="/v1/operations", tags=["operations"])

After = Annotated[int, Query(ge=0, le=MAX_INT, description="Only what has a higher number")]


@router.get("", response_model=list[Operation])
@reads(tagged=True)
async def every(  # noqa: PLR0913, PLR0917 - each is a part of the query
    here: Here,
    request: Request,
    vm: str = "",
    kind: str = "",
    state: OperationState | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 100,
) -> Response:
    """Newest first; `vm` is a name or an id."""
    wanted = str(state) if state else ""
    found = await here.operations.list(vm=vm, kind=kind, state=wanted, limit=limit)
    return answer([one for one in found if roles.may_see_operation(request, one)])


@router.get("/{operation}", response_model=Operation)
@reads(tagged=True)
async def one(
    operation: str,
    here: Here,
    request: Request,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds, until final")] = 0,
) -> Response:
    """As it is now, or when it is final, or after `wait` seconds."""
    if wait and not (await here.operations.get(operation)).state.is_final:
        closing: asyncio.Event = request.app.state.closing
        await race(here.operations.wait(operation, wait), closing.wait())
    return answer(await here.operations.get(operation))


@router.get("/{operation}/log", response_model=list[LogLine])
@reads(tagged=True)
async def log(operation: str, here: Here, after: After = 0) -> Response:
    """Its diary, at most 1000 lines at once."""
    await here.operations.get(operation)
    return answer(await here.operations.journal.lines(operation, after))


@router.get("/{operation}/samples", response_model=list[dict[str, Any]])
@reads(tagged=True)
async def samples(operation: str, here: Here) -> Response:
    """Its progress over time: thinned evenly when there is much, first and last always there."""
    await here.operations.get(operation)
    return answer(await here.operations.journal.samples(operation))


@router.get(
    "/{operation}/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}}},
)
@reads(tagged=True)
async def events(
    operation: str,
    here: Here,
    request: Request,
    after: After = 0,
    last_event_id: Annotated[str, Header()] = "",
) -> Response:
    """Server-sent events `state` (Operation), `log` (LogLine) and `progress`; ends with the last state.

    Come back with Last-Event-ID: nothing is lost or told twice. Of states that passed meanwhile, only
    the newest is told. A reader that falls too far behind is disconnected, and can come back too.
    """
    if last_event_id:
        after = _number(last_event_id)
    await here.operations.get(operation)
    events = here.operations.subscribe(operation, after)
    return EventStream(events, request.app.state.closing)


@router.post("/{operation}:cancel", response_model=Operation, status_code=202)
@needs(Role.OPERATOR, tagged=True, record=Record.AFTER)
async def cancel(operation: str, here: Here, request: Request) -> Response:
    """Ask it to stop and undo; the answer comes at once, the end later.

    Who is no migrator may stop its own, and what is no move.
    """
    found, who = await here.operations.get(operation), roles.principal(request)
    if found.kind not in OPERATORS and found.by != who.text and not who.has(Role.MIGRATOR):
        raise RoleTooLow(
            what=f"cancelling a {found.kind}", host=here.name, needed=f"the role {Role.MIGRATOR}",
            who=who.text, grant=who.grant,
        )  # fmt: skip
    return accepted(await here.operations.cancel(operation))


@router.patch("/{operation}", response_model=Operation)
@needs(Role.MIGRATOR, tagged=True, record=Record.AFTER)
async def adjust(operation: str, here: Here, body: Adjustment) -> Response:
    """Change the limits of a move that is under way; they hold when this returns."""
    return answer(await here.operations.adjust(operation, body))


@router.get("/{operation}/doubt", response_model=Doubt)
@reads()
async def doubt(operation: str, here: Here) -> Response:
    """What is known of a move in state `unknown`, and the ways out. Asks the other hosts."""
    doubts: Doubts = here.doubts
    return answer(await doubts.explain(operation))


@router.post("/{operation}:resolve", response_model=Operation, status_code=202)
@needs(Role.ADMIN)
async def resolve(operation: str, here: Here, body: Resolution) -> Response:
    """Declare the target off: the VM is taken back. The answer comes at once, the end later."""
    doubts: Doubts = here.doubts
    if not body.fenced:
        raise BadSpec(where="fenced", reason="it must be true: to wait, there is nothing to do")
    return accepted(await doubts.fence(operation))


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadSpec(where="Last-Event-ID", reason=f"{text!r} is no event of an operation")
    return int(text)
