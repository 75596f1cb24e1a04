"""Server-sent events: a stream that ends when its source does, when its reader leaves, or when the
reader is so slow that it would hold the daemon's memory. Each event carries an id to come back with.

The format is that of the WHATWG HTML standard, section "Server-sent events".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sterna.operations.hub import Event

log = logging.getLogger(__name__)

ALIVE_S = (
    10.0  # a comment that often shows both sides that the other is there; clients give up after 20
)
SLOW_S = 30.0  # a reader that takes nothing for so long is gone or stuck
GOODBYE_S = 1.0  # for the end of a stream at shutdown
ABORT = "abort"  # key of scope["state"]: drops the connection at once

HEADERS = {
    "content-type": "text/event-stream",
    "x-accel-buffering": "no",
}


class EventStream(Response):
    """Sends `events`, ids as `name(number)`, until they end or `closing` is set."""

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        closing: asyncio.Event,
        name: Callable[[int], str] = str,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._closing = closing
        self._name = name
        self._may_go_on: Callable[[], bool] = lambda: True
        self._wire = asyncio.Lock()  # events and signs of life take turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        abort, self._may_go_on = state.get(ABORT, _nothing), state.get("still", lambda: True)
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            await race(
                self._pump(send), self._signs_of_life(send), _gone(receive), self._closing.wait()
            )
            async with asyncio.timeout(GOODBYE_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.warning("a reader of %s was too slow and was disconnected", scope["path"])
            abort()

    async def _pump(self, send: Send) -> None:
        await self._write(send, "retry: 1000\n\n")
        async with contextlib.aclosing(self._events):
            async for event in self._events:
                await self._write(
                    send,
                    f"id: {self._name(event.number)}\nevent: {event.kind}\ndata: {event.data}\n\n",
                )

    async def _signs_of_life(self, send: Send) -> None:
        while True:
            await asyncio.sleep(ALIVE_S)
            if not self._may_go_on():  # its token has expired, its session is over
                return
            await self._write(send, ": still here\n\n")

    async def _write(self, send: Send, text: str) -> None:
        async with self._wire, asyncio.timeout(SLOW_S):
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _nothing() -> None:
    """A server that gave us no way to drop a connection drops it when we end."""


async def race(*works: Coroutine[Any, Any, object]) -> None:
    """Run all until one ends; the others are cancelled. Raises what the first one raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
