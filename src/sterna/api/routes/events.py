"""Everything that changes on this host, as it changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Header, Request, Response

from sterna.api import roles
from sterna.api.events import EventStream
from sterna.api.roles import reads
from sterna.api.services import Here
from sterna.operations.hub import Event, Hub

router = roles.router(prefix="/v1/events", tags=["events"])


@router.get(
    "",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}}},
)
@reads(tagged=True)
async def events(
    here: Here, request: Request, last_event_id: Annotated[str, Header()] = ""
) -> Response:
    """Server-sent events `operation` (Operation) and `vm` (VMView), without end.

    `reset` comes first, unless everything since Last-Event-ID could be told: read the lists anew.
    """
    hub = here.operations.hub
    events = _follow(hub, last_event_id)
    if roles.principal(request).tag:
        events = _visible(events, request)
    return EventStream(events, request.app.state.closing, lambda n: f"{hub.epoch}-{n}")


async def _visible(
    events: AsyncGenerator[Event, None], request: Request
) -> AsyncGenerator[Event, None]:
    """Those of VMs that the caller may know of."""
    async with contextlib.aclosing(events):
        async for event in events:
            data = json.loads(event.data)
            if event.kind == "vm" and not roles.may_see(request, data):
                continue
            if event.kind == "operation" and not (
                roles.may_see_vm(request, str(data.get("vm_id") or data.get("vm") or ""))
                or data.get("by") == roles.principal(request).text
            ):
                continue
            yield event


async def _follow(hub: Hub, last: str) -> AsyncGenerator[Event, None]:
    subscription = hub.subscribers.add()
    try:
        missed = _missed(hub, last)
        if missed is None:
            yield Event(hub.number, "reset", "{}")
        for event in missed or ():
            yield event
        async for event in subscription:
            yield event
    finally:
        hub.subscribers.discard(subscription)


def _missed(hub: Hub, last: str) -> list[Event] | None:
    epoch, _, number = last.partition("-")
    if epoch != hub.epoch or not number.isascii() or not number.isdigit() or len(number) > 18:
        return None
    return hub.since(int(number))
