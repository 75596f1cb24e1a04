"""What hosts say to each other about a move.

A host speaks for itself only: a reservation names the host that asks for it, and nobody else can
act on it. Local root may do all.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Depends, Request, Response

from sterna.api import roles
from sterna.api.access import USER
from sterna.api.roles import Record, between_hosts
from sterna.api.services import Services
from sterna.errors import BadSpec, NotAllowed, NotDelegated, RoleTooLow
from sterna.model import edge
from sterna.model.access import Principal, Role
from sterna.model.reservation import GIVEN_UP, Look, Rejoin, Reservation, Take


def _caller(request: Request) -> str:
    """The peer that asks; empty: local root."""
    who = roles.principal(request)
    return who.name if who.kind == "host" else ""


def _require_own(request: Request) -> None:
    """The reservation in the path is the caller's, if there is one."""
    operation = request.path_params.get("operation")
    if operation is None or not (caller := _caller(request)):
        return
    source = request.app.state.services.incoming.source_of(operation)
    if source not in ("", caller):
        raise _not_its_own(caller, source)


def _require_source(request: Request, source: str) -> None:
    if (caller := _caller(request)) and source != caller:
        raise _not_its_own(caller, source)


def _require_user(request: Request, reservation: Reservation) -> None:
    """Whom the source asks for may move that VM here, too."""
    here: Services = request.app.state.services
    user: Principal | None = getattr(request.state, USER, None)
    vm = reservation.spec
    if user is None:
        if here.authority.realm_facts.is_required:
            raise NotDelegated(host=here.name, vm=vm.name)
        return
    if not user.has(Role.MIGRATOR) or (user.tag and user.tag not in vm.tags):
        raise RoleTooLow(
            what=f"sending {vm.name}", host=here.name, needed="the role migrator", who=user.text,
            grant=user.grant,
        )  # fmt: skip


def _not_its_own(caller: str, source: str) -> NotAllowed:
    return NotAllowed(
        what=f"this for {caller}",
        reason=f"the reservation is that of {source}",
        fix="Ask from the host itself; after a change of its name, pair it again",
    )


router = roles.router(prefix="/v1/peer", tags=["peer"], dependencies=[Depends(_require_own)])


@router.post("/checks")
@between_hosts()
async def check(request: Request, body: Annotated[dict[str, Any], Body()]) -> list[dict[str, Any]]:
    """What would make this host refuse such a reservation; nothing is reserved."""
    question = edge.parse(Reservation, body, "reservation")
    _require_source(request, question.source)
    found = await request.app.state.services.incoming.check(question)
    return [dict(edge.dump(one)) for one in found]


@router.post("/looks")
@between_hosts()
async def look(request: Request, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Which names that another host has just made in its pools, and which files, are seen here."""
    asked = edge.parse(Look, body, "look")
    return dict(edge.dump(await request.app.state.services.incoming.look(asked)))


@router.post("/probes", status_code=201)
@between_hosts()
async def probe(request: Request) -> dict[str, Any]:
    """Where a source may send for a moment, to see how fast the link is."""
    return dict(edge.dump(await request.app.state.services.incoming.probe()))


@router.post("/reservations", status_code=201)
@between_hosts(Record.FIRST)
async def reserve(request: Request, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Make ready for a VM of another host: its name, its room, its record."""
    reservation = edge.parse(Reservation, body, "reservation")
    if not reservation.operation:
        raise BadSpec(where="reservation", reason="operation is empty")
    _require_source(request, reservation.source)
    _require_user(request, reservation)
    answer = await request.app.state.services.incoming.reserve(reservation)
    return dict(edge.dump(answer))


@router.post("/reservations/{operation}:open")
@between_hosts()
async def open_(request: Request, operation: str) -> dict[str, Any]:
    """All files are here: start its QEMU; answers where memory and disks are awaited."""
    return dict(edge.dump(await request.app.state.services.incoming.open(operation)))


@router.get("/reservations/{operation}")
@between_hosts()
async def status(request: Request, operation: str) -> dict[str, Any]:
    """Where the reservation stands; asking keeps it alive."""
    return dict(edge.dump(request.app.state.services.incoming.status(operation)))


@router.get("/reservations/{operation}/qemu")
@between_hosts()
async def qemu(request: Request, operation: str) -> dict[str, bool]:
    """Whether the QEMU that waits for the VM answers."""
    return {"answers": await request.app.state.services.incoming.answers(operation)}


@router.post("/reservations/{operation}:take")
@between_hosts(Record.AFTER)
async def take(
    request: Request, operation: str, body: Annotated[dict[str, Any], Body()]
) -> dict[str, Any]:
    """The VM is yours now. May be repeated; the answer stays the same."""
    wish = edge.parse(Take, body, "take")
    return dict(
        edge.dump(await request.app.state.services.incoming.take(operation, wish.vm_id, wish.epoch))
    )


@router.post("/reservations/{operation}:refuse")
@between_hosts(Record.AFTER)
async def refuse(
    request: Request, operation: str, body: Annotated[dict[str, Any], Body()]
) -> dict[str, Any]:
    """Give the reservation up, unless the VM has been taken: then the answer says so."""
    incoming = request.app.state.services.incoming
    wish = edge.parse(Take, body, "refusal")
    answer = await incoming.refuse_asked(operation, wish.vm_id, wish.epoch, GIVEN_UP)
    return dict(edge.dump(answer))


@router.post("/rejoin")
@between_hosts(Record.AFTER)
async def rejoin(request: Request, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Post-copy broke: make ready for a new connection, or hear that memory is lost for good."""
    wish = edge.parse(Rejoin, body, "rejoin")
    incoming = request.app.state.services.incoming
    return dict(edge.dump(await incoming.rejoin(wish)))


@router.get("/vms/{vm_id}")
@between_hosts()
async def standing(request: Request, vm_id: str) -> dict[str, Any]:
    """What this host durably knows of the ownership of a VM; an empty state: nothing."""
    state, epoch = request.app.state.services.doubts.standing(vm_id)
    return {"state": state, "epoch": epoch}


@router.post("/fenced")
@between_hosts(Record.AFTER)
async def fenced(request: Request, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """The VM was taken back from this host while it was off, up to that epoch. May be repeated."""
    wish = edge.parse(Take, {key: body.get(key) for key in ("vm_id", "epoch")}, "fence")
    by = str(body.get("by") or "its former owner")
    state, epoch = await request.app.state.services.doubts.fenced(wish.vm_id, wish.epoch, by)
    return {"state": state, "epoch": epoch}


@router.get("/reservations/{operation}/files/{n}")
@between_hosts()
async def digests(request: Request, operation: str, n: int, first: int = 0) -> Response:
    """What is here of a file: 32 bytes for each chunk, from chunk `first` on, as many as come at once."""
    files = request.app.state.services.incoming.files(operation)
    return Response(await files.digests(n, first), media_type="application/octet-stream")


@router.put("/reservations/{operation}/files/{n}/chunks/{chunk}", status_code=204)
@between_hosts()
async def put(request: Request, operation: str, n: int, chunk: int, blocks: str) -> Response:
    """One chunk of a file: its blocks that are not zero, `blocks` says which, as hexadecimal bits.

    A body that is shorter than these blocks is them, compressed by zstd.
    """
    files = request.app.state.services.incoming.files(operation)
    pieces = [piece async for piece in request.stream() if piece]  # one; `body()` would copy it
    await files.put(n, chunk, _bits(blocks), b"".join(pieces))
    return Response(status_code=204)


@router.post("/reservations/{operation}/files/{n}:finish")
@between_hosts()
async def finish(
    request: Request, operation: str, n: int, body: Annotated[dict[str, Any], Body()]
) -> dict[str, Any]:
    """All chunks are sent: read the file back. "checking" means: ask again."""
    files = request.app.state.services.incoming.files(operation)
    return dict(edge.dump(await files.finish(n, str(body.get("root")))))


def _bits(blocks: str) -> int:
    try:
        return int(blocks, 16)
    except ValueError as error:
        raise BadSpec(where="blocks", reason="not a hexadecimal number") from error
