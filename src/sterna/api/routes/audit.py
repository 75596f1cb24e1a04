"""What was done here, and by whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import Query, Response
from starlette.responses import StreamingResponse

from sterna.api import roles
from sterna.api.answers import answer
from sterna.api.roles import reads
from sterna.api.services import Here
from sterna.api.views import AuditView, VerdictView
from sterna.model.access import Role

router = roles.router(prefix="/v1/audit", tags=["audit"])
PIECE = 1 << 20


@router.get("", response_model=list[AuditView])
@reads(Role.ADMIN)
async def every(
    here: Here,
    since: Annotated[str, Query(description="RFC 3339, UTC")] = "",
    who: str = "",
    vm: str = "",
    limit: Annotated[int, Query(ge=1, le=10000)] = 100,
) -> Response:
    """Newest first, each request with its outcome; `who` is also for whom a host has asked."""
    return answer(await here.audit.find(since=since, who=who, vm=vm, limit=limit))


@router.get("/verdict", response_model=VerdictView)
@reads(Role.ADMIN)
async def verdict(here: Here) -> Response:
    """Whether every line is as it was written; if not, the first that is not."""
    return answer(await here.audit.verify())


@router.get(
    "/lines", response_class=Response, responses={200: {"content": {"application/x-ndjson": {}}}}
)
@reads(Role.ADMIN)
async def lines(here: Here) -> Response:
    """All lines as they are on the disk, the oldest first: the chain can be followed in them."""
    return StreamingResponse(_pieces(here.audit.files()), media_type="application/x-ndjson")


async def _pieces(files: list[Path]) -> AsyncIterator[bytes]:
    for path in files:
        with await asyncio.to_thread(path.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield piece
