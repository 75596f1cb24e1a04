"""A stand-in for sternad that speaks its API over a real socket: for tests of the command line.

What a daemon decides (moves, stops) is played by a function that the test gives; everything else
is kept in dictionaries. It can be stopped with all its connections, and started again.
"""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from sterna import errors
from sterna.clock import now

FINAL = {"succeeded", "warned", "failed", "cancelled", "partial"}
TIMEOUT_S = 20.0  # of anything that a test waits for


class Operation:
    """An operation and its events; changed by the test's play, read by the server."""

    def __init__(self, kind: str, vm: str, peer: str = "") -> None:
        self.id = uuid.uuid4().hex[:12]
        self.facts = {
            "id": self.id, "kind": kind, "vm": vm, "vm_id": "", "state": "running", "phase": "",
            "created": now(), "ended": "", "peer": peer, "cancellable": True, "steps": [],
            "progress": {}, "result": {}, "error": {},
        }  # fmt: skip
        self.events: list[tuple[str, dict]] = []
        self.lines: list[dict] = []
        self.changed = threading.Condition()
        self.cancels = 0
        self.doubt: dict = {}
        self.watched = 0  # event streams that were opened

    def emit(self, name: str, data: dict) -> None:
        with self.changed:
            self.events.append((name, json.loads(json.dumps(data))))
            self.changed.notify_all()

    def sign_of_life(self) -> None:
        self.emit("", {})

    def set(self, **facts: object) -> None:
        self.facts |= facts
        self.emit("state", self.facts)

    def phase(self, name: str) -> None:
        self.set(phase=name)

    def step(self, name: str, text: str, seconds: float = 0.2, state: str = "done") -> None:
        step = {"name": name, "state": state, "began": now(), "seconds": seconds, "text": text}
        self.set(steps=[*self.facts["steps"], step])

    def sample(self, **numbers: object) -> None:
        self.facts["progress"] = numbers
        self.emit("progress", numbers)

    def log(self, text: str, level: str = "info") -> None:
        line = {"number": len(self.lines) + 1, "time": now(), "level": level, "text": text}
        self.lines.append(line)
        self.emit("log", line)

    def end(self, state: str, result: dict | None = None, error: dict | None = None) -> None:
        self.set(state=state, ended=now(), result=result or {}, error=error or {})

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT_S)

    def wait_watched(self, times: int = 1) -> None:
        self.wait(lambda: self.watched >= times)

    def wait_cancelled(self) -> None:
        self.wait(lambda: self.cancels > 0)


Play = Callable[[Operation], None]


class Standin:
    """The daemon `name`. `url` is where it answers while it runs."""

    def __init__(self, path: Path, *, certificate: tuple | None = None) -> None:
        self.path = path
        self.name = "hv-a"
        self.certificate = certificate
        self.vms: dict[str, dict] = {}
        self.switches: dict[str, dict] = {}
        self.pools: dict[str, dict] = {}
        self.operations: dict[str, Operation] = {}
        self.requests: list[tuple[str, str, object]] = []
        self.play: Play = lambda operation: operation.end("succeeded")
        self.answer: Callable[[_Handler], bool] = lambda handler: False
        self._plays: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        if self.certificate is None:
            return f"unix://{self.path}"
        assert self._server is not None
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """As killed: every connection ends in the middle of whatever it carried."""
        if self._server is not None:
            self._server.end()
            self._server = None
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        for thread in self._plays:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        self.stop()
        assert not self._failures, self._failures

    def begin(self, operation: Operation) -> Operation:
        self.operations[operation.id] = operation
        operation.set()

        def run() -> None:
            try:
                self.play(operation)
            except BaseException as error:  # noqa: BLE001 - shown when the test ends
                self._failures.append(error)

        self._plays.append(threading.Thread(target=run, daemon=True))
        self._plays[-1].start()
        return operation

    def add_vm(self, name: str, state: str = "running", **more: object) -> dict:
        spec = {"name": name, "vcpus": 2, "memory": 2 << 30, "cpu": "x86-64-v2", **more}
        self.vms[name] = {
            "name": name, "id": str(uuid.uuid4()), "state": state, "host": self.name, "spec": spec,
            "ownership": {"state": "owned", "epoch": 1}, "operation": "", "process": None,
            "console": "", "vnc": "", "notes": [], "damaged": None,
        }  # fmt: skip
        return self.vms[name]


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = True
    allow_reuse_address = True

    def __init__(self, owner: Standin) -> None:
        self.owner = owner
        self.open: set[socket.socket] = set()
        self.is_ending = threading.Event()
        if owner.certificate is None:
            self.address_family = socket.AF_UNIX
            super().__init__(str(owner.path), _Handler)  # type: ignore[arg-type]
        else:
            super().__init__(("127.0.0.1", 0), _Handler)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*map(str, owner.certificate))
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def end(self) -> None:
        self.is_ending.set()
        for operation in self.owner.operations.values():
            with operation.changed:
                operation.changed.notify_all()
        self.shutdown()
        for sock in list(self.open):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        self.server.open.add(self.request)
        super().setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.server.open.discard(self.request)

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        parts = urlsplit(self.path)
        self.query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        self.words = [unquote(word) for word in parts.path.strip("/").split("/")]
        owner = self.server.owner
        owner.requests.append((self.command, self.path, body))
        if owner.answer(self):
            return
        try:
            self._route(owner, body)
        except errors.SternaError as error:
            self.send(error.status, error.problem(), "application/problem+json")

    def send(self, status: int, body: object, kind: str = "application/json") -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_raw(status, data, kind)

    def send_raw(self, status: int, data: bytes, kind: str = "text/html") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _route(self, owner: Standin, body: object) -> None:  # noqa: C901 - a table
        match [self.command, *self.words]:
            case ["GET", "v1", "vms"]:
                self.send(200, list(owner.vms.values()))
            case ["POST", "v1", "vms"]:
                self._create(owner, body)
            case ["POST", "v1", "vms", name, "moves"]:
                self._vm(name)
                self._accepted(Operation("move", name, body["target"]))
            case [method, "v1", "vms", reference]:
                self._one_vm(owner, method, reference)
            case [method, "v1", "switches" | "pools" as kind, *rest]:
                self._place(getattr(owner, kind), kind, method, rest, body)
            case ["GET", "v1", "hosts"]:
                self.send(200, HOSTS)
            case ["GET", "v1", "host"] | ["GET", "v1", "hosts", "hv-a"]:
                self.send(200, FACTS)
            case ["GET", "v1", "hosts", name]:
                raise errors.HostUnknown(host="hv-a", peer=name, known="hv-b")
            case ["GET", "v1", "operations"]:
                newest = reversed(owner.operations.values())
                wanted = [op.facts for op in newest if self._matches(op.facts)]
                self.send(200, wanted[: int(self.query.get("limit", 100))])
            case [method, "v1", "operations", reference, *rest]:
                self._operation(method, reference, rest)
            case _:
                self.send(404, {"detail": "Not Found"})

    def _matches(self, facts: dict) -> bool:
        return all(
            facts[key] == self.query[key] for key in ("vm", "kind", "state") if key in self.query
        )

    def _vm(self, name: str) -> dict:
        owner = self.server.owner
        if name not in owner.vms:
            raise errors.VMNotFound(host=owner.name, vm=name)
        return owner.vms[name]

    def _create(self, owner: Standin, body: dict) -> None:
        known = {"name", "vcpus", "memory", "cpu", "machine", "firmware", "disks", "nics", "boot"}
        if unknown := set(body) - known - {"graphics", "tags", "id"}:
            raise errors.BadSpec(where="the spec", reason=f"unknown field {min(unknown)!r}")
        if body["name"] in owner.vms:
            raise errors.VMExists(host=owner.name, vm=body["name"])
        self.send(201, owner.add_vm(**{"state": "off", **body}))

    def _one_vm(self, owner: Standin, method: str, reference: str) -> None:
        name, _, action = reference.partition(":")
        view = self._vm(name)
        if method == "DELETE":
            del owner.vms[name]
            self.send(204, None)
        elif action == "stop":
            self._accepted(Operation("stop", name))
        elif action:
            view["state"] = {"start": "running", "pause": "paused", "resume": "running"}[action]
            self.send(200, view)
        else:
            self.send(200, view)

    def _place(self, places: dict, kind: str, method: str, rest: list, body: dict) -> None:
        word = {"switches": "switch", "pools": "pool"}[kind]
        match [method, *rest]:
            case ["GET"]:
                self.send(200, list(places.values()))
            case ["POST"]:
                extra = (
                    {"vlans": False} if word == "switch" else {"total": 10 << 30, "free": 5 << 30}
                )
                places[body["name"]] = {word: body, "problem": "", "users": [], **extra}
                self.send(201, places[body["name"]])
            case ["DELETE", name] if name in places:
                del places[name]
                self.send(204, None)
            case _:
                cls = errors.SwitchNotFound if word == "switch" else errors.PoolNotFound
                raise cls(**{"host": "hv-a", word: rest[0]})

    def _accepted(self, operation: Operation) -> None:
        self.server.owner.begin(operation)
        self.send(202, operation.facts)

    def _operation(self, method: str, reference: str, rest: list[str]) -> None:
        ident, _, action = reference.partition(":")
        operation = self.server.owner.operations.get(ident)
        if operation is None:
            raise errors.OperationNotFound(operation=ident, host="hv-a")
        if action == "cancel":
            if operation.facts["state"] in FINAL:
                state = operation.facts["state"]
                raise errors.OperationEnded(operation=ident, state=state)
            with operation.changed:
                operation.cancels += 1
                operation.changed.notify_all()
            operation.set(state="cancelling")
            self.send(202, operation.facts)
        elif rest == ["events"]:
            self._events(operation)
        elif rest == ["doubt"]:
            if not operation.doubt:
                state = f"it is {operation.facts['state']}"
                raise errors.NotInDoubt(operation=ident, state=state)
            self.send(200, operation.doubt)
        elif action == "resolve":
            operation.set(state="warned", result={"warnings": ["taken back"]}, ended=now())
            self.send(202, operation.facts)
        elif rest == ["log"]:
            after = int(self.query.get("after", 0))
            self.send(200, [line for line in operation.lines if line["number"] > after])
        else:
            self.send(200, operation.facts)

    def _events(self, operation: Operation) -> None:
        after = int(self.headers.get("Last-Event-ID") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with operation.changed:
            operation.watched += 1
            operation.changed.notify_all()
        ending = self.server.is_ending
        while True:
            with operation.changed:
                while len(operation.events) <= after and not ending.is_set():
                    if not operation.changed.wait(TIMEOUT_S):
                        return
                waiting = operation.events[after:]
            if ending.is_set():
                self.close_connection = True
                return
            for name, data in waiting:
                after += 1
                text = f"id: {after}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()
                if not name:
                    text = b": still here\n\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                if name == "state" and data["state"] in FINAL:
                    self.wfile.write(b"0\r\n\r\n")
                    return


HOSTS = [
    {"name": "hv-a", "url": "", "state": "this", "reason": "", "version": "0.1.0", "vms": 1},
    {"name": "hv-b", "url": "https://10.0.0.2:7443", "state": "up", "reason": "",
     "version": "0.1.0", "vms": 0},
    {"name": "hv-c", "url": "https://10.0.0.3:7443", "state": "down",
     "reason": "connection refused", "version": "", "vms": None},
]  # fmt: skip
FACTS = {
    "name": "hv-a", "sterna": "0.1.0", "api": 1, "time": "2026-11-22T12:00:00.000Z", "cpus": 2,
    "memory_total": 8 << 30, "memory_free": 5 << 30,
    "qemu": {"binary": "/usr/bin/qemu-system-x86_64", "version": "7.2.22", "accel": "tcg",
             "accel_reason": "/dev/kvm is missing", "machines": ["pc-q35-7.2", "pc-q35-7.1"]},
    "switches": [{"switch": {"name": "lan", "bridge": "br0", "uplink": "eth1"}, "vlans": False,
                  "problem": ""}],
    "pools": [{"pool": {"name": "default", "path": "/disks", "shared": True, "identity": "x"},
               "total": 10 << 30, "free": 5 << 30, "problem": ""}],
    "migration_address": "10.0.0.1", "vms": 1, "problems": [],
}  # fmt: skip
