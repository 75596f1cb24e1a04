"""An API whose VMs, switches and pools live in memory; runner, journal and listeners are real."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from fastapi import FastAPI

from operations_rig import a_runner
from sterna.api.app import build
from sterna.api.listeners import HTTPS, Listening, listen
from sterna.api.services import Services
from sterna.errors import (
    HostUnknown,
    MoveRefused,
    PoolExists,
    PoolInUse,
    PoolNotFound,
    SwitchExists,
    SwitchInUse,
    SwitchNotFound,
    VMExists,
    VMNotFound,
)
from sterna.model.edge import dump
from sterna.model.host import HostFacts, PoolFacts, QEMUFacts, SwitchFacts
from sterna.model.vm import Ownership, OwnershipState
from sterna.operations.runner import Job, Runner
from sterna.security.audit import Audit
from sterna.security.authority import Authority
from sterna.security.local import Locals


class MemoryVMs:
    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.specs: dict[str, Any] = {}
        self.states: dict[str, str] = {}
        self.stop_gate = asyncio.Event()

    def list(self) -> Sequence[dict[str, Any]]:
        return [self.view(name) for name in sorted(self.specs)]

    def view(self, ref: str) -> dict[str, Any]:
        spec = self._get(ref)
        owned = Ownership(state=OwnershipState.OWNED, epoch=1)
        return {
            "name": spec.name,
            "id": spec.id,
            "state": self.states[spec.name],
            "host": "alpha",
            "spec": dump(spec),
            "ownership": dump(owned),
            "operation": "",
            "process": None,
            "console": "",
            "vnc": "",
            "notes": [],
            "damaged": None,
        }

    def _get(self, ref: str) -> Any:
        for spec in self.specs.values():
            if ref in (spec.name, spec.id):
                return spec
        raise VMNotFound(vm=ref, host="alpha")

    async def create(self, spec: Any) -> dict[str, Any]:
        if spec.name in self.specs:
            raise VMExists(vm=spec.name, host="alpha")
        self.specs[spec.name] = replace(spec, id=spec.id or f"id-{spec.name}")
        self.states[spec.name] = "off"
        return self.view(spec.name)

    async def delete(self, ref: str, *, keep_disks: bool) -> None:
        del self.specs[self._get(ref).name]

    async def _become(self, ref: str, state: str) -> dict[str, Any]:
        self.states[self._get(ref).name] = state
        if self._get(ref).name == "cursed":
            raise ZeroDivisionError("a secret detail")
        return self.view(ref)

    async def start(self, ref: str) -> dict[str, Any]:
        return await self._become(ref, "running")

    async def pause(self, ref: str) -> dict[str, Any]:
        return await self._become(ref, "paused")

    async def resume(self, ref: str) -> dict[str, Any]:
        return await self._become(ref, "running")

    def stop(self, ref: str, *, force: bool, timeout_s: float) -> Any:
        spec = self._get(ref)

        async def work(job: Job) -> dict[str, Any]:
            async with job.step("stop") as step:
                if not force:
                    await self.stop_gate.wait()
                step.say(f"{spec.name} is off")
            self.states[spec.name] = "off"
            return {"timeout_s": timeout_s}

        return self.runner.start("stop", vm=spec.name, vm_id=spec.id, work=work)

    def users_of_switch(self, switch: str) -> Sequence[str]:
        return [
            one.name for one in self.specs.values() if switch in {nic.switch for nic in one.nics}
        ]

    def users_of_pool(self, pool: str) -> Sequence[str]:
        return [one.name for one in self.specs.values() if pool in {d.pool for d in one.disks}]


class Named:
    """Switches or pools, as `kind` says."""

    def __init__(self, view: Callable[[Any], Any], errors: tuple[type, type, type]) -> None:
        self.held: dict[str, Any] = {}
        self._view = view
        self._exists, self._missing, self._in_use = errors

    async def facts(self) -> list[Any]:
        return [self._view(self.held[name]) for name in sorted(self.held)]

    async def facts_of(self, name: str) -> Any:
        return self._view(self.held[name])

    async def create(self, one: Any) -> Any:
        if one.name in self.held:
            raise self._exists(switch=one.name, pool=one.name, host="alpha")
        self.held[one.name] = one
        return one

    async def delete(self, name: str, users: Callable[[str], Any]) -> None:
        if name not in self.held:
            raise self._missing(switch=name, pool=name, host="alpha")
        if using := sorted(users(name)):
            raise self._in_use(switch=name, pool=name, users=", ".join(using))
        del self.held[name]


class ScriptedMoves:
    """`work` is what the next move does."""

    def __init__(self, vms: MemoryVMs) -> None:
        self.vms = vms
        self.work: Callable[[Job], Awaitable[dict[str, Any]]] | None = None
        self.wishes: Any = None

    async def begin(self, ref: str, wishes: Any) -> Any:
        view = self.vms.view(ref)
        if wishes.target == "nowhere":
            raise MoveRefused(vm=ref, target="nowhere", summary="no such host", fix="add it")
        self.wishes = wishes
        return self.vms.runner.start(
            "move", vm=view["name"], vm_id=view["id"], peer=wishes.target, work=self.work
        )


def facts() -> HostFacts:
    qemu = QEMUFacts(binary="qemu", version="7.2", accel="tcg", accel_reason="", machines=())
    return HostFacts(
        name="alpha",
        sterna="0",
        api=1,
        time="",
        cpus=2,
        memory_total=1,
        memory_free=1,
        qemu=qemu,
        switches=(),
        pools=(),
        migration_address="",
        vms=0,
    )


@dataclass
class API:
    app: FastAPI
    runner: Runner
    vms: MemoryVMs
    moves: ScriptedMoves
    socket: Path
    port: int
    authority: Authority
    audit: Audit

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers in lower case, and the body read as JSON."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            return await exchange((reader, writer), method, path, body, headers)
        finally:
            await hang_up(writer)

    async def open(self, path: str, last: str = "") -> "Stream":
        """An event stream; close it."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        extra = f"Last-Event-ID: {last}\r\n" if last else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return Stream(reader, writer, int(head.split()[1]), head.decode().lower())


async def exchange(connection, method, path, body=None, headers=None):
    reader, writer = connection
    data = (
        body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    )
    lines = {
        "Host": "x",
        "Content-Length": str(len(data)),
        "Content-Type": "application/json",
        "Connection": "close",
    } | (headers or {})
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
    answer = await reader.read()
    top, _, content = answer.partition(b"\r\n\r\n")
    status, *rest = top.decode().split("\r\n")
    found = {key.lower(): value for key, _, value in (line.partition(": ") for line in rest)}
    if found.get("transfer-encoding") == "chunked":
        content = b"".join(content.split(b"\r\n")[1::2])
    return int(status.split()[1]), found, json.loads(content) if content else None


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Stream:
    """Server-sent events as a browser reads them."""

    def __init__(self, reader, writer, status: int, head: str) -> None:
        self.reader, self.writer, self.status, self.head = reader, writer, status, head
        self._text = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await hang_up(self.writer)

    async def chunk(self) -> str:
        """One chunk of the response's body; empty at its end, or when the connection breaks."""
        try:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2].decode()
        except (asyncio.IncompleteReadError, ConnectionError):
            return ""

    async def events(self) -> AsyncIterator[dict[str, str]]:
        while chunk := await self.chunk():
            self._text += chunk
            while "\n\n" in self._text:
                block, _, self._text = self._text.partition("\n\n")
                fields = dict(
                    line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
                )
                if "data" in fields:
                    yield fields

    async def all(self) -> list[dict[str, str]]:
        return [event async for event in self.events()]

    async def next(self) -> dict[str, str]:
        return await anext(self.events())


@contextlib.asynccontextmanager
async def an_api(folder: Path, https: HTTPS | None = None) -> AsyncIterator[API]:
    authority = Authority("alpha", folder / "access", https.trust if https else None, Locals())
    audit = Audit(folder / "audit")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(audit.close)
        runner = await stack.enter_async_context(a_runner(folder))
        vms = MemoryVMs(runner)
        moves = ScriptedMoves(vms)

        async def host() -> HostFacts:
            return facts()

        async def hosts() -> list[dict[str, Any]]:
            return [
                {"name": "alpha", "url": "", "state": "this", "reason": "", "version": "", "vms": 0}
            ]

        async def peer_facts(name: str) -> HostFacts:
            raise HostUnknown(host="alpha", peer=name, known="beta")

        app = build(
            Services(
                name="alpha",
                facts=host,
                hosts=hosts,
                peer_facts=peer_facts,
                vms=vms,
                switches=Named(
                    lambda switch: SwitchFacts(switch=switch, vlans=True),
                    (SwitchExists, SwitchNotFound, SwitchInUse),
                ),
                pools=Named(
                    lambda pool: PoolFacts(pool=pool, total=10, free=5),
                    (PoolExists, PoolNotFound, PoolInUse),
                ),
                operations=runner,
                moves=moves,
                storage_moves=moves,
                authority=authority,
                audit=audit,
            )
        )
        listening = await stack.enter_async_context(
            listen(app, folder / "s.sock", authority, audit, https)
        )
        assert isinstance(listening, Listening)
        yield API(app, runner, vms, moves, listening.socket, listening.port, authority, audit)
