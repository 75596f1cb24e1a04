"""Every route with everybody: who gets in, and who does not, over the real listeners."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api_rig import API, an_api
from operations_rig import in_loop
from sterna.api import events, roles
from sterna.api.app import PUBLIC
from sterna.api.listeners import HTTPS
from sterna.api.routes import peer, trust
from sterna.api.services import Services
from sterna.errors import NoSuchPath
from sterna.model.access import Role, TokenWishes
from sterna.model.trust import PeerRecord
from sterna.security import identity
from sterna.security.local import Locals
from sterna.security.trust import Trust

pytestmark = pytest.mark.functional

V, O, M, A = (str(role) for role in Role)  # noqa: E741 - the columns of a table
HOST, GUEST, NOBODY = "host", "guest", "nobody"
# The least that each route asks for, written by hand: what the code declares is compared with it.
TABLE = {
    "GET /v1": f"{V} {HOST}", "GET /v1/host": f"{V} {HOST}", "GET /v1/me": f"{V} {HOST}",
    "GET /v1/baseline": V, "GET /v1/hosts": V, "GET /v1/hosts/{name}": V,
    "PATCH /v1/host/settings": A, "POST /v1/host:rotate": A, "POST /v1/invitations": A,
    "POST /v1/peers": A, "PATCH /v1/peers/{name}": A, "DELETE /v1/peers/{name}": A,
    "GET /v1/users": A, "POST /v1/users": A, "PATCH /v1/users/{name}": A,
    "DELETE /v1/users/{name}": A, "PUT /v1/users/{name}/password": V,
    "GET /v1/tokens": A, "POST /v1/tokens": A, "DELETE /v1/tokens/{name}": A,
    "POST /v1/sessions": f"{NOBODY} {HOST}", "DELETE /v1/sessions/current": V,
    "GET /v1/audit": A, "GET /v1/audit/verdict": A, "GET /v1/audit/lines": A,
    "GET /v1/vms": V, "POST /v1/vms": O, "GET /v1/vms/{vm}": V, "PATCH /v1/vms/{vm}": O,
    "DELETE /v1/vms/{vm}": O, "GET /v1/vms/{vm}/upgrade": V, "POST /v1/vms/{vm}:upgrade-version": O,
    "PATCH /v1/vms/{vm}/nics/{nic}": O, "POST /v1/vms/{vm}:insert": O, "POST /v1/vms/{vm}:eject": O,
    "POST /v1/vms/{vm}:start": O, "POST /v1/vms/{vm}:pause": O, "POST /v1/vms/{vm}:resume": O,
    "POST /v1/vms/{vm}:stop": O, "POST /v1/vms/{vm}/moves": M, "POST /v1/vms/{vm}/moves:check": V,
    "POST /v1/vms/{vm}/moves:survey": V, "POST /v1/vms/{vm}/storage-moves": M,
    "POST /v1/vms/{vm}/storage-moves:check": V, "POST /v1/vms/{vm}/exports": A,
    "GET /v1/vms/{vm}/checkpoints": V, "POST /v1/vms/{vm}/checkpoints": O,
    "POST /v1/vms/{vm}/checkpoints/{checkpoint}:apply": O,
    "POST /v1/vms/{vm}/checkpoints/{checkpoint}:rename": O,
    "DELETE /v1/vms/{vm}/checkpoints/{checkpoint}": O,
    "GET /v1/guardians": V, "POST /v1/guardians": A, "DELETE /v1/guardians/{name}": A,
    "POST /v1/vms/{vm}:authorize": A, "POST /v1/vms/{vm}:revoke": A,
    "POST /v1/vms/{vm}:save": O, "POST /v1/vms/{vm}:restore": O, "POST /v1/vms/{vm}:discard": O,
    "POST /v1/moves": M, "POST /v1/moves:check": V, "POST /v1/host/drain": M,
    "POST /v1/host/drain:check": V, "POST /v1/host/resume": M, "POST /v1/host/resume:check": V,
    "GET /v1/switches": V, "POST /v1/switches": A, "GET /v1/switches/{name}": V,
    "PATCH /v1/switches/{name}": A, "DELETE /v1/switches/{name}": A,
    "GET /v1/pools": V, "POST /v1/pools": A, "DELETE /v1/pools/{name}": A,
    "GET /v1/kept": V, "DELETE /v1/kept/{copy}": O, "POST /v1/disk-check": V,
    "POST /v1/imports": A, "POST /v1/imports:check": A,
    "GET /v1/operations": V, "GET /v1/operations/{operation}": V,
    "PATCH /v1/operations/{operation}": M, "GET /v1/operations/{operation}/log": V,
    "GET /v1/operations/{operation}/samples": V, "GET /v1/operations/{operation}/events": V,
    "POST /v1/operations/{operation}:cancel": O, "GET /v1/operations/{operation}/doubt": V,
    "POST /v1/operations/{operation}:resolve": A, "GET /v1/events": V,
    "POST /v1/pairing": f"{NOBODY} {HOST}", "POST /v1/peer/paired": f"{GUEST} {HOST}",
    "POST /v1/peer/certificate": HOST, "POST /v1/peer/checks": HOST, "POST /v1/peer/looks": HOST,
    "POST /v1/peer/probes": HOST, "POST /v1/peer/reservations": HOST,
    "POST /v1/peer/reservations/{operation}:open": HOST,
    "GET /v1/peer/reservations/{operation}": HOST,
    "GET /v1/peer/reservations/{operation}/qemu": HOST,
    "POST /v1/peer/reservations/{operation}:take": HOST,
    "POST /v1/peer/reservations/{operation}:refuse": HOST, "POST /v1/peer/rejoin": HOST,
    "GET /v1/peer/vms/{vm_id}": HOST, "POST /v1/peer/fenced": HOST,
    "GET /v1/peer/reservations/{operation}/files/{n}": HOST,
    "PUT /v1/peer/reservations/{operation}/files/{n}/chunks/{chunk}": HOST,
    "POST /v1/peer/reservations/{operation}/files/{n}:finish": HOST,
}  # fmt: skip
# What a role that is limited to a tag may do with the VMs that have it; all else is refused to it.
TAGGED = {
    one for one, least in TABLE.items()
    if "{vm}" in one or "{operation}" in one.removeprefix("POST /v1/peer")
} - {
    "POST /v1/vms/{vm}/exports", "PATCH /v1/vms/{vm}/nics/{nic}", "POST /v1/vms/{vm}:insert",
    "POST /v1/vms/{vm}:authorize", "POST /v1/vms/{vm}:revoke",
    "GET /v1/operations/{operation}/doubt", "POST /v1/operations/{operation}:resolve",
} | {
    "GET /v1", "GET /v1/me", "GET /v1/vms", "GET /v1/operations", "GET /v1/events",
    "PUT /v1/users/{name}/password", "DELETE /v1/sessions/current",
}  # fmt: skip


def routes() -> Iterator[tuple[str, roles.Need]]:
    for router in (*(module.router for module in PUBLIC), peer.router, trust.between):
        for route in router.routes:
            for method in sorted(route.methods):
                yield f"{method} {route.path}", route.need


def filled(path: str) -> str:
    """A path of that route, of things that are not there."""
    for name in ("vm", "vm_id", "operation", "name", "nic", "checkpoint", "copy"):
        path = path.replace(f"{{{name}}}", "nothing")
    return path.replace("{n}", "0").replace("{chunk}", "0") + (
        "?blocks=0" if "chunk" in path else ""
    )


def allowed(route: str, who: str) -> bool:
    least = TABLE[route].split()
    kind, _, role = who.partition("-")
    if kind in least:
        return True
    if kind == "local":
        return True
    rank = [V, O, M, A]
    floor = [one for one in least if one in rank]
    if kind == "tagged":
        return route in TAGGED and floor != [] and rank.index(role) >= rank.index(floor[0])
    if kind in ("token", "host"):
        return floor != [] and role in rank and rank.index(role) >= rank.index(floor[0])
    return False


def record(folder: Path, name: str) -> PeerRecord:
    own = identity.ensure(folder / name, name, "127.0.0.1")
    return PeerRecord(name=name, url="https://127.0.0.1:7443", certificate=own.pem)


class Absent:
    """A part of the daemon that is not there: who gets as far as that got in."""

    def __getattr__(self, name: str) -> Any:
        raise NoSuchPath(path=name)


@contextlib.asynccontextmanager
async def everybody(folder: Path) -> AsyncIterator[tuple[API, dict[str, httpx2.AsyncClient]]]:
    """The API, and clients of all who could ask it, by name."""
    own = identity.ensure(folder / "identity", "alpha", "127.0.0.1")
    trusted = Trust(folder / "peers", own)
    async with contextlib.AsyncExitStack() as stack:
        for role in ("none", *Role):
            await trusted.put(replace(record(folder, f"host-{role}"), role=str(role)))
        trusted.receive(record(folder, "guest"))
        https = HTTPS(address="127.0.0.1", port=0, trust=trusted)
        api = await stack.enter_async_context(an_api(folder, https))
        services = api.app.state.services
        real = ("name", "facts", "hosts", "peer_facts", "vms", "operations", "audit", "authority")
        absent = {one.name: Absent() for one in fields(Services) if one.name not in real}
        api.app.state.services = replace(services, **absent)
        base = f"https://127.0.0.1:{api.port}"

        async def client(name: str, token: str = "", transport=None) -> httpx2.AsyncClient:
            context = ssl.create_default_context(cadata=own.pem)
            if (folder / name / "key.pem").exists():
                context.load_cert_chain(
                    folder / name / "certificate.pem", folder / name / "key.pem"
                )
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            made = httpx2.AsyncClient(
                base_url=base if transport is None else "http://x", verify=context,
                headers=headers, trust_env=False, timeout=20, transport=transport,
            )  # fmt: skip
            return await stack.enter_async_context(made)

        clients = {"nobody": await client("nobody"), "guest": await client("guest")}
        for role in ("none", *Role):
            clients[f"host-{role}"] = await client(f"host-{role}")
        for role in Role:
            for kind, tag in (("token", ""), ("tagged", "shop")):
                wishes = TokenWishes(name=f"{kind}-{role}", role=role, tag=tag)
                text, _ = await api.authority.accounts.create_token(wishes, "test")
                clients[f"{kind}-{role}"] = await client(f"{kind}-{role}", text)
        unix = httpx2.AsyncHTTPTransport(uds=str(api.socket))
        clients["local-root"] = await client("local-root", transport=unix)
        yield api, clients


async def ask(client: httpx2.AsyncClient, route: str, body=None) -> tuple[int, str]:
    """Status and code; of a stream, its beginning."""
    method, _, path = route.partition(" ")
    async with client.stream(method, filled(path), json=body) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return answer.status_code, ""
        found = await answer.aread()
    is_problem = answer.headers.get("content-type") == "application/problem+json"
    return answer.status_code, str(json.loads(found)["code"]) if is_problem else ""


def test_the_table_has_every_route_and_no_other():
    assert sorted(TABLE) == sorted(route for route, _ in routes())


@pytest.mark.parametrize("kind", ["token", "tagged", "host", "local", "nobody", "guest"])
@in_loop
async def test_every_route_with_everybody(tmp_path, kind):
    wrong = []
    async with everybody(tmp_path) as (_, clients):
        for route, _need in routes():
            for who, client in clients.items():
                if who.partition("-")[0] != kind:
                    continue
                status, code = await ask(client, route)
                got_in = status not in (401, 403)
                if got_in != allowed(route, who):
                    wrong.append(f"{who} {route}: {status} {code}")
    assert not wrong, "\n".join(wrong)


@in_loop
async def test_a_role_for_a_tag_shows_and_touches_no_other_vm(tmp_path):
    async with everybody(tmp_path) as (api, clients):
        root, shop = clients["local-root"], clients["tagged-admin"]
        for name, tags in (("mine", ["shop"]), ("yours", ["bank"]), ("bare", [])):
            made = await root.post("/v1/vms", json={"name": name, "memory": "64MiB", "tags": tags})
            assert made.status_code == 201
        assert [one["name"] for one in (await shop.get("/v1/vms")).json()] == ["mine"]
        for name in ("yours", "bare", "nothing"):
            answers = [
                await shop.get(f"/v1/vms/{name}"),
                await shop.post(f"/v1/vms/{name}:start"),
                await shop.delete(f"/v1/vms/{name}"),
                await shop.post(f"/v1/vms/id-{name}:stop", json={"force": True}),
            ]
            assert [one.json()["code"] for one in answers] == ["vm.not-found"] * 4
        assert (await shop.post("/v1/vms/mine:start")).status_code == 200
        # Nobody gives a VM to himself, nor makes one that reads the host's files.
        changed = await shop.patch("/v1/vms/mine", json={"tags": ["bank"]})
        assert (changed.status_code, changed.json()["code"]) == (403, "access.role")
        assert (await shop.post("/v1/vms", json={"name": "new"})).status_code == 403
        thief = {"name": "x", "disks": [{"name": "vda", "pool": "p", "image": "/etc/shadow"}]}
        for who, status in (("token-operator", 403), ("token-migrator", 403), ("token-admin", 201)):
            assert (await clients[who].post("/v1/vms", json=thief)).status_code == status, who
        mine = (await shop.post("/v1/vms/mine:stop", json={"force": True})).json()
        assert mine["by"] == "token:tagged-admin"
        yours = (await root.post("/v1/vms/yours:stop", json={"force": True})).json()
        assert yours["by"] == "local:root"
        assert [one["id"] for one in (await shop.get("/v1/operations")).json()] == [mine["id"]]
        hidden = await shop.get(f"/v1/operations/{yours['id']}")
        assert (hidden.status_code, hidden.json()["code"]) == (404, "operation.not-found")
        found = await shop.get(f"/v1/operations/{mine['id']}?wait=10")
        assert found.json()["state"] == "succeeded"
        refused = [one for one in await api.audit.find() if one["what"] == "refused"]
        assert {"vm.not-found", "access.role", "operation.not-found"} <= {
            one["code"] for one in refused
        }


@in_loop
async def test_events_of_others_vms_are_not_told(tmp_path):
    async with everybody(tmp_path) as (api, clients):
        root = clients["local-root"]
        for name, tags in (("mine", ["shop"]), ("yours", ["bank"])):
            await root.post("/v1/vms", json={"name": name, "memory": "64MiB", "tags": tags})
        async with clients["tagged-viewer"].stream("GET", "/v1/events") as answer:
            lines = answer.aiter_lines()
            while "reset" not in await anext(lines):
                pass
            for name in ("yours", "mine"):
                await root.post(f"/v1/vms/{name}:stop", json={"force": True})
            told = ""
            while '"succeeded"' not in told:
                told += await anext(lines)
            assert "mine" in told
            assert "yours" not in told
            await api.authority.accounts.revoke("tagged-viewer")  # and it ends, at once
            with contextlib.suppress(httpx2.HTTPError, StopAsyncIteration):
                while True:
                    await anext(lines)
        assert (await clients["tagged-viewer"].get("/v1/vms")).status_code == 401


@in_loop
async def test_a_host_is_limited_to_moves_and_to_what_its_role_allows(tmp_path):
    async with everybody(tmp_path) as (api, clients):
        for who, status in (("host-none", 403), ("host-viewer", 200), ("host-admin", 200)):
            assert (await clients[who].get("/v1/vms")).status_code == status
            assert (await clients[who].get("/v1/host")).status_code == 200
        made = await clients["host-operator"].post(
            "/v1/vms",
            json={"name": "web"},
            headers={"Sterna-For": "alice", "Sterna-Reason": "a%20b"},
        )
        assert made.status_code == 201
        row = (await api.audit.find())[0]
        assert (row["who"], row["via"], row["reason"]) == ("alice", "host:host-operator", "a b")
        assert (row["vm"], row["status"], row["role"]) == ("web", 201, "operator")
        # Nobody else speaks for others.
        await clients["token-operator"].post("/v1/vms/web:start", headers={"Sterna-For": "alice"})
        assert (await api.audit.find())[0]["who"] == "token:token-operator"


@in_loop
async def test_a_stream_ends_when_its_token_does(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "ALIVE_S", 0.2)
    async with everybody(tmp_path) as (api, clients):
        wishes = TokenWishes(name="short", role=Role.VIEWER, expires_s=2)
        text, _ = await api.authority.accounts.create_token(wishes, "test")
        client = clients["nobody"]
        headers = {"Authorization": f"Bearer {text}"}
        async with (
            asyncio.timeout(10),
            client.stream("GET", "/v1/events", headers=headers) as answer,
        ):
            assert answer.status_code == 200
            assert "still here" in "".join([line async for line in answer.aiter_lines()])
        assert (await client.get("/v1/events", headers=headers)).status_code == 401


CLIENT = """
import os, socket, sys
os.setgroups([int(one) for one in sys.argv[4].split(",") if one]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"%s HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\nContent-Length: 0\\r\\n\\r\\n" % sys.argv[5].encode())
print(s.recv(99).split()[1].decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
@in_loop
async def test_the_kernel_says_who_uses_the_socket(tmp_path):
    """uid, gid and groups of a process; its request; what it gets."""
    import api_rig  # noqa: PLC0415

    group = 65433
    ordinary = api_rig.Locals
    api_rig.Locals = lambda: Locals(gid=group, role=Role.OPERATOR)
    folder = Path("/tmp") / f"sterna-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        async with an_api(folder) as api:
            found = api.socket.stat()
            assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o660, 0, group)

            async def ask_as(uid: int, gid: int, groups: str, request: str) -> str:
                argv = [sys.executable, "-c", CLIENT, str(api.socket), str(uid), str(gid), groups]
                done = await asyncio.to_thread(
                    subprocess.run, [*argv, request], capture_output=True, text=True, check=False
                )
                return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

            assert await ask_as(0, 0, "", "POST /v1/invitations") == "400"  # an admin: no body
            assert await ask_as(65432, group, "", "GET /v1/vms") == "200"
            assert await ask_as(65432, 65432, f"4,{group}", "POST /v1/vms/x:start") == "404"
            assert await ask_as(65432, 65432, f"{group}", "POST /v1/vms/x/moves") == "403"
            assert await ask_as(65432, 65432, f"{group}", "POST /v1/peer/probes") == "403"
            assert "PermissionError" in await ask_as(65432, 65432, "4", "GET /v1/vms")
            api.socket.chmod(0o666)  # even then
            assert await ask_as(65432, 65432, "4", "GET /v1/vms") == "401"
    finally:
        api_rig.Locals = ordinary
        shutil.rmtree(folder)


def test_a_route_that_does_not_say_who_may_ask_it_cannot_be_made():
    async def open_to_all() -> None:
        pass

    with pytest.raises(TypeError, match="does not say who may ask it"):
        roles.router().get("/v1/secret")(open_to_all)
    from fastapi import APIRouter, FastAPI  # noqa: PLC0415

    plain = APIRouter()
    plain.get("/v1/secret")(open_to_all)
    with pytest.raises(TypeError, match="does not say who may ask it"):
        roles.require_guards(FastAPI(openapi_url=None), [plain], but="/v1/openapi.json")
