"""The other host of a move, over HTTPS: its certificate pinned, one warm connection kept.

Every failure is told apart by what it means for a handover: `HostUnreachable.delivered` is False
only when the request has certainly not reached the peer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2

from sterna.config import Config
from sterna.errors import (
    HostUnknown,
    HostUnreachable,
    NoSuchPath,
    PeerOutdated,
    SternaError,
    from_problem,
)
from sterna.model import edge
from sterna.model.check import Check, MoveReport
from sterna.model.host import HostFacts
from sterna.model.move import MoveWishes
from sterna.model.operation import Operation
from sterna.model.reservation import (
    FileCheck,
    Known,
    Look,
    Looked,
    Probe,
    Rejoin,
    Rejoined,
    Reservation,
    ReservationStatus,
    Take,
)
from sterna.model.vm import OwnershipState, RunState
from sterna.security import identity
from sterna.units import KIB

ANSWER_S = 5.0  # a daemon that is well answers in milliseconds
PROBE_S = 0.9  # a question that is asked while a guest may be standing still
RESERVE_S = 60.0  # it starts a QEMU, on a busy host
CHUNK_S = 35.0  # without progress; the daemon gives a body 30 s
PIECE = 256 * KIB  # of a body that is encrypted at once: other requests get their turn between

# Raised before a single byte of the request was sent.
_NOT_DELIVERED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Peer:
    """Client of one other host's daemon."""

    def __init__(
        self, name: str, url: str, http: httpx2.AsyncClient, bulk: httpx2.AsyncClient | None = None
    ) -> None:
        self.name = name
        self.url = url
        self._http = http
        self._bulk = bulk or http  # connections of files, which questions must not wait for
        self._bulk_url = httpx2.URL(url)

    async def facts(self) -> HostFacts:
        """What that host has. Files go to the address that it names for moves from then on."""
        found = await self._ask("GET", "/v1/host")
        facts = edge.parse(HostFacts, found, f"facts of {self.name}")
        allowed = facts.migration_addresses or (facts.migration_address,)
        if facts.migration_address and self._bulk_url.host not in allowed:
            self._bulk_url = httpx2.URL(self.url).copy_with(host=facts.migration_address)
        return facts

    def prefer(self, addresses: Sequence[str]) -> None:
        """Files go to the first of these from now on, if there is one."""
        for address in addresses[:1]:
            self._bulk_url = httpx2.URL(self.url).copy_with(host=address)

    async def check(self, question: Reservation) -> tuple[Check, ...]:
        """What would make it refuse that reservation now; nothing is reserved."""
        answer = await self._ask("POST", "/v1/peer/checks", edge.dump(question))
        return edge.parse(tuple[Check, ...], answer, f"answer of {self.name}")

    async def look(self, look: Look) -> Looked:
        """Ask it what of that is there."""
        answer = await self._ask("POST", "/v1/peer/looks", edge.dump(look))
        return edge.parse(Looked, answer, f"answer of {self.name}")

    async def probe(self) -> Probe:
        """Ask it where to send to, to see how fast the link is."""
        answer = await self._ask("POST", "/v1/peer/probes")
        return edge.parse(Probe, answer, f"answer of {self.name}")

    async def reserve(self, reservation: Reservation) -> ReservationStatus:
        """Ask it to make ready for the VM."""
        body = edge.dump(reservation)
        answer = await self._ask("POST", "/v1/peer/reservations", body, RESERVE_S)
        return self._status(answer)

    async def open(self, operation: str) -> ReservationStatus:
        """Ask it to start the VM's QEMU; answers where that awaits memory and disks."""
        path = f"/v1/peer/reservations/{operation}:open"
        return self._status(await self._ask("POST", path, timeout_s=RESERVE_S))

    async def status(self, operation: str) -> ReservationStatus:
        """Where it stands; also says that the source is alive and still wants it."""
        return self._status(await self._ask("GET", f"/v1/peer/reservations/{operation}"))

    async def answers(self, operation: str) -> bool:
        """Whether its QEMU for that move is well, as far as that can be told within a second."""
        path = f"/v1/peer/reservations/{operation}/qemu"
        try:
            answer = await self._ask("GET", path, timeout_s=PROBE_S)
        except SternaError:
            return False
        return isinstance(answer, dict) and answer.get("answers") is True

    async def take(self, operation: str, vm_id: str, epoch: int) -> ReservationStatus:
        """Tell it to own and run the VM. May be repeated: the answer stays the same."""
        path = f"/v1/peer/reservations/{operation}:take"
        return self._status(
            await self._ask("POST", path, edge.dump(Take(vm_id=vm_id, epoch=epoch)))
        )

    async def rejoin(self, wish: Rejoin) -> Rejoined:
        """In post-copy: ask for a new connection, or say that there are no pages any more."""
        answer = await self._ask("POST", "/v1/peer/rejoin", edge.dump(wish))
        return edge.parse(Rejoined, answer, f"answer of {self.name}")

    async def refuse(self, operation: str, vm_id: str, epoch: int) -> ReservationStatus:
        """Tell it to give the reservation up, unless it has taken the VM: then it says so."""
        path = f"/v1/peer/reservations/{operation}:refuse"
        body = {"vm_id": vm_id, "epoch": epoch}
        return self._status(await self._ask("POST", path, body))

    async def standing(self, vm_id: str) -> tuple[OwnershipState | None, int]:
        """What it durably knows of that VM: (state, epoch)."""
        found = await self._ask("GET", f"/v1/peer/vms/{vm_id}")
        known = edge.parse(Known, found, f"answer of {self.name}")
        return OwnershipState(known.state) if known.state else None, known.epoch

    async def fenced(self, vm_id: str, epoch: int, by: str) -> None:
        """Tell it that its ownership up to `epoch` was taken back; it has written so on return."""
        body = {"vm_id": vm_id, "epoch": epoch, "by": by}
        await self._ask("POST", "/v1/peer/fenced", body, RESERVE_S)

    # ---- as its users do -------------------------------------------------------------------

    async def vm_state(self, vm_id: str) -> RunState:
        """What a VM of that host is doing. Raises VMNotFound, VMDamaged."""
        view = await self._ask("GET", f"/v1/vms/{vm_id}")
        return edge.parse(RunState, view.get("state"), f"answer of {self.name}")

    async def check_move(self, vm_id: str, wishes: MoveWishes) -> MoveReport:
        """What would become of that move, away from that host."""
        body, path = edge.dump(wishes), f"/v1/vms/{vm_id}/moves:check"
        answer = await self._ask("POST", path, body, RESERVE_S)
        return edge.parse(MoveReport, answer, f"answer of {self.name}")

    async def move(self, vm_id: str, wishes: MoveWishes) -> Operation:
        """Have that host move a VM away; an operation of its own. Raises what its checks say."""
        body, path = edge.dump(wishes), f"/v1/vms/{vm_id}/moves"
        return self._operation(await self._ask("POST", path, body, RESERVE_S))

    async def operation(self, operation: str, wait_s: float) -> Operation:
        """One of its operations: when it is final, or after `wait_s` as it is."""
        path = f"/v1/operations/{operation}?wait={wait_s:g}"
        return self._operation(await self._ask("GET", path, timeout_s=wait_s + ANSWER_S))

    async def cancel(self, operation: str) -> Operation:
        """Ask one of its operations to stop and undo."""
        return self._operation(await self._ask("POST", f"/v1/operations/{operation}:cancel"))

    # ---- files -----------------------------------------------------------------------------

    async def held(self, operation: str, n: int, first: int) -> bytes:
        """The digests of what it has of file `n`, from chunk `first` on, as many as it tells."""
        path = f"/v1/peer/reservations/{operation}/files/{n}?first={first}"
        return (await self._send_bulk("GET", path)).content

    async def put(self, operation: str, n: int, chunk: int, blocks: int, data: bytes) -> None:
        """Give it one chunk: `data` are its `blocks`, squeezed, the others are zero. May be repeated."""
        path = f"/v1/peer/reservations/{operation}/files/{n}/chunks/{chunk}?blocks={blocks:x}"

        async def pieces() -> AsyncIterator[bytes]:
            for offset in range(0, len(data), PIECE):
                yield data[offset : offset + PIECE]

        headers = {"Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}
        await self._send_bulk("PUT", path, content=pieces(), headers=headers)

    async def finish(self, operation: str, n: int, root: str) -> FileCheck:
        """Ask it to read file `n` back; it answers what it knows after a moment. May be repeated."""
        path = f"/v1/peer/reservations/{operation}/files/{n}:finish"
        answer = await self._send_bulk("POST", path, json={"root": root})
        return edge.parse(FileCheck, self._json(answer), f"answer of {self.name}")

    # ---- how -------------------------------------------------------------------------------

    def _operation(self, body: Any) -> Operation:
        return edge.parse(Operation, body, f"answer of {self.name}")

    def _status(self, body: Any) -> ReservationStatus:
        return edge.parse(ReservationStatus, body, f"answer of {self.name}")

    async def _ask(
        self, method: str, path: str, body: Any = None, timeout_s: float = ANSWER_S
    ) -> Any:
        return self._json(await self._send(self._http, method, path, timeout_s, json=body))

    async def _send_bulk(self, method: str, path: str, **body: Any) -> httpx2.Response:
        """Over the migration network, to a host whose certificate names its other address."""
        named = {"sni_hostname": httpx2.URL(self.url).host}
        where = str(self._bulk_url.copy_with(path="")).rstrip("/") + path
        return await self._send(self._bulk, method, where, CHUNK_S, extensions=named, **body)

    async def _send(
        self, http: httpx2.AsyncClient, method: str, path: str, timeout_s: float, **body: Any
    ) -> httpx2.Response:
        try:
            response = await http.request(method, path, timeout=timeout_s, **body)
        except (httpx2.HTTPError, OSError) as error:
            unreachable = HostUnreachable(
                peer=self.name, url=self.url, reason=str(error) or type(error).__name__
            )
            unreachable.delivered = not isinstance(error, _NOT_DELIVERED)
            raise unreachable from error
        if response.is_error:
            problem = _problem(response)
            if problem.get("code") == NoSuchPath.code:
                raise PeerOutdated(peer=self.name, call=f"{method} {response.url.path}")
            raise from_problem(problem)
        return response

    def _json(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise HostUnreachable(
                peer=self.name, url=self.url, reason="its answer is not JSON"
            ) from error


def _problem(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and "title" in body:
        return body
    return {"title": f"HTTP status {response.status_code} without a reason", "code": "internal"}


class Peers:
    """The hosts that the configuration names."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open: dict[str, Peer] = {}
        self._clients: list[httpx2.AsyncClient] = []

    @property
    def names(self) -> list[str]:
        return sorted(self._config.peers)

    def get(self, name: str) -> Peer:
        """The peer of that name. Raises HostUnknown, BadConfig."""
        if name not in self._open:
            entry = self._config.peers.get(name)
            if entry is None:
                raise HostUnknown(
                    host=self._config.name, peer=name, known=", ".join(self.names) or "none"
                )
            token = identity.read_token(self._config.token_file)
            clients = [
                httpx2.AsyncClient(
                    base_url=entry.url,
                    verify=identity.peer_context(entry.certificate),
                    headers={"Authorization": f"Bearer {token}"},
                    trust_env=False,
                    limits=httpx2.Limits(max_connections=8, keepalive_expiry=60),
                )
                for _ in range(2)
            ]
            self._clients += clients
            self._open[name] = Peer(name, entry.url, *clients)
        return self._open[name]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()
