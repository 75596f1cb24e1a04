"""The other host of a move, over HTTPS: both show the certificate that the other knows; one warm
connection is kept.

Every failure is told apart by what it means for a handover: `HostUnreachable.delivered` is False
only when the request has certainly not reached the peer.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx2

from sterna import actor
from sterna.errors import (
    HostUnknown,
    HostUnreachable,
    NoSuchPath,
    NotMutual,
    PeerOutdated,
    SternaError,
    from_problem,
)
from sterna.model import edge
from sterna.model.access import MAX_REASON
from sterna.model.check import Check, MoveReport
from sterna.model.host import HostFacts, RealmFacts
from sterna.model.move import Adjustment, MoveWishes
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
from sterna.model.trust import PeerRecord
from sterna.model.vm import OwnershipState, RunState
from sterna.security.trust import Trust
from sterna.units import KIB

ANSWER_S = 5.0  # a daemon that is well answers in milliseconds
PROBE_S = 0.9  # a question that is asked while a guest may be standing still
RESERVE_S = 60.0  # it starts a QEMU, on a busy host
CHUNK_S = 35.0  # without progress; the daemon gives a body 30 s
PIECE = 256 * KIB  # of a body that is encrypted at once: other requests get their turn between

# Raised before a single byte of the request was sent.
_NOT_DELIVERED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
# What is seen of a server that wants another certificate; which, is a race of its end and our request.
_HUNG_UP = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)


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
        self._is_gone = False
        self.realm = RealmFacts()  # of when it told its facts last
        self.certificate: Callable[[], str] = str  # PEM that it is known by
        self._stranger: Callable[[], ssl.SSLContext] | None = None  # to it, as nobody

    def use(self, url: str, http: httpx2.AsyncClient, bulk: httpx2.AsyncClient) -> None:
        """Ask through these from now on; what is under way ends on the old ones."""
        if url != self.url:
            self.url, self._bulk_url = url, httpx2.URL(url)
        self._http, self._bulk = http, bulk

    def may_ask_as_nobody(self, context: Callable[[], ssl.SSLContext]) -> None:
        """How to find out whether it is this host alone that it does not answer."""
        self._stranger = context

    def leave(self) -> None:
        """Nothing is sent to it any more: it is not trusted."""
        self._is_gone = True

    async def hello(self) -> None:
        """Show it our certificate."""
        await self._ask("GET", "/v1")

    async def announce(self, certificate: str) -> None:
        """Tell it the certificate that this host will show."""
        await self._ask("POST", "/v1/peer/certificate", {"certificate": certificate})

    async def facts(self) -> HostFacts:
        """What that host has. Files go to the address that it names for moves from then on."""
        try:
            found = await self._ask("GET", "/v1/host")
        except HostUnreachable as error:
            if await self._hangs_up_on_us(error):
                raise NotMutual(peer=self.name, url=self.url) from error
            raise
        facts = edge.parse(HostFacts, found, f"facts of {self.name}")
        self.realm = facts.realm
        allowed = facts.migration_addresses or (facts.migration_address,)
        if facts.migration_address and self._bulk_url.host not in allowed:
            self._bulk_url = httpx2.URL(self.url).copy_with(host=facts.migration_address)
        return facts

    def prefer(self, addresses: Sequence[str]) -> None:
        """Files go to the first of these from now on, if there is one."""
        for address in addresses[:1]:
            self._bulk_url = httpx2.URL(self.url).copy_with(host=address)

    async def _hangs_up_on_us(self, error: HostUnreachable) -> bool:
        """Whether it would talk to others: in TLS a certificate that is not known ends all."""
        if self._stranger is None or not isinstance(error.__cause__, _HUNG_UP):
            return False
        try:
            async with httpx2.AsyncClient(verify=self._stranger(), trust_env=False) as http:
                answer = await http.get(f"{self.url}/v1", timeout=ANSWER_S)
        except (httpx2.HTTPError, OSError):
            return False
        return answer.status_code == httpx2.codes.UNAUTHORIZED

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

    async def reserve(self, reservation: Reservation, ticket: str = "") -> ReservationStatus:
        """Ask it to make ready for the VM. `ticket`: a header that shows for whom."""
        body = edge.dump(reservation)
        shown = {"Sterna-Ticket": ticket} if ticket else {}
        answer = await self._ask("POST", "/v1/peer/reservations", body, RESERVE_S, headers=shown)
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

    async def adjust(self, operation: str, wished: Adjustment) -> Operation:
        """Change what one of its operations is to keep to."""
        path = f"/v1/operations/{operation}"
        return self._operation(await self._ask("PATCH", path, edge.dump(wished)))

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
        self, method: str, path: str, body: Any = None, timeout_s: float = ANSWER_S, **more: Any
    ) -> Any:
        return self._json(await self._send(self._http, method, path, timeout_s, json=body, **more))

    async def _send_bulk(self, method: str, path: str, **body: Any) -> httpx2.Response:
        """Over the migration network."""
        where = str(self._bulk_url.copy_with(path="")).rstrip("/") + path
        return await self._send(self._bulk, method, where, CHUNK_S, **body)

    async def _send(
        self, http: httpx2.AsyncClient, method: str, path: str, timeout_s: float, **body: Any
    ) -> httpx2.Response:
        if self._is_gone:
            raise self._silent("it is not trusted any more", delivered=False)
        if by := actor.now():  # for its audit
            body["headers"] = {**body.get("headers", {}), "Sterna-For": quote(by[:MAX_REASON])}
        try:
            response = await http.request(method, path, timeout=timeout_s, **body)
        except (httpx2.HTTPError, OSError) as error:
            delivered = not isinstance(error, _NOT_DELIVERED)
            raise self._silent(words_of(error), delivered=delivered) from error
        except RuntimeError as error:  # closed under the request
            if not self._is_gone:
                raise
            raise self._silent("it is not trusted any more", delivered=True) from error
        if response.is_error:
            problem = problem_of(response)
            if problem.get("code") == NoSuchPath.code:
                raise PeerOutdated(peer=self.name, call=f"{method} {response.url.path}")
            raise from_problem(problem)
        return response

    def _silent(self, reason: str, *, delivered: bool) -> HostUnreachable:
        error = HostUnreachable(peer=self.name, url=self.url, reason=reason)
        error.delivered = delivered
        return error

    def _json(self, response: httpx2.Response) -> Any:
        edge.require_text(response.content, f"answer of {self.name}")
        try:
            return response.json()
        except ValueError as error:
            raise HostUnreachable(
                peer=self.name, url=self.url, reason="its answer is not JSON"
            ) from error


def problem_of(response: httpx2.Response) -> dict[str, Any]:
    """The problem body that it answered with, or one that says that there is none."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and "title" in body:
        return body
    return {"title": f"HTTP status {response.status_code} without a reason", "code": "internal"}


def words_of(error: Exception) -> str:
    """Why a request failed."""
    return str(error) or type(error).__name__


class Peers:
    """The hosts that this one trusts, each with its warm connections."""

    def __init__(self, host: str, trust: Trust) -> None:
        self._host = host
        self.trust = trust
        self._open: dict[str, Peer] = {}
        self._used: dict[str, tuple[httpx2.AsyncClient, httpx2.AsyncClient]] = {}
        self._made_of: dict[str, tuple[PeerRecord, int]] = {}
        self._retired: list[httpx2.AsyncClient] = []  # requests under way may be on them
        self._gone: list[httpx2.AsyncClient] = []
        trust.follow(self._follow)

    @property
    def names(self) -> list[str]:
        return self.trust.names

    def get(self, name: str) -> Peer:
        """The peer of that name. Raises HostUnknown."""
        if name not in self._open:
            record = self.trust.get(name)
            if record is None:
                raise HostUnknown(host=self._host, peer=name, known=", ".join(self.names) or "none")
            peer = Peer(name, record.url, *self._clients(record))
            peer.may_ask_as_nobody(lambda: self.trust.stranger(name))
            peer.certificate = lambda: self._certificate(name)
            self._open[name] = peer
        return self._open[name]

    def _certificate(self, name: str) -> str:
        record = self.trust.get(name)
        return record.certificate if record is not None else ""

    def _clients(self, record: PeerRecord) -> tuple[httpx2.AsyncClient, httpx2.AsyncClient]:
        def client() -> httpx2.AsyncClient:
            return httpx2.AsyncClient(
                base_url=record.url,
                verify=self.trust.client(record),
                trust_env=False,
                limits=httpx2.Limits(max_connections=8, keepalive_expiry=60),
            )

        self._used[record.name] = made = client(), client()
        self._made_of[record.name] = record, self.trust.generation
        return made

    def _follow(self) -> None:
        """The trust has changed: certificates, addresses, or who is trusted at all."""
        for name, peer in list(self._open.items()):
            record = self.trust.get(name)
            if record is None:
                peer.leave()
                self._gone += self._used.pop(name)
                del self._open[name]
            elif self._made_of[name] != (record, self.trust.generation):
                self._retired += self._used.pop(name)
                peer.use(record.url, *self._clients(record))

    async def hang_up(self) -> None:
        """Close the connections to hosts that are not trusted any more, with all that is on them."""
        while self._gone:
            await self._gone.pop().aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self.hang_up()
        for client in (*self._retired, *(one for pair in self._used.values() for one in pair)):
            await client.aclose()
