import asyncio
import contextlib
import os
import socket
import ssl
import stat
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from api_rig import an_api, exchange, hang_up
from operations_rig import in_loop
from sterna.api import access, listeners
from sterna.api.app import build
from sterna.api.listeners import HTTPS, listen
from sterna.api.serve import serve
from sterna.api.services import Services
from sterna.config import Config, Listen
from sterna.errors import ListenFailed
from sterna.model.trust import PeerRecord
from sterna.security import identity
from sterna.security.audit import Audit
from sterna.security.authority import Authority
from sterna.security.local import Locals
from sterna.security.trust import Trust

pytestmark = pytest.mark.functional

HUNG_UP = (ssl.SSLError, ConnectionError, IndexError)  # the last: nothing came that is an answer


def bare_app():
    return build(Services(**{one.name: None for one in fields(Services)} | {"name": "alpha"}))


def guards(folder: Path, trust: Trust | None = None) -> tuple[Authority, Audit]:
    return Authority("alpha", folder / "access", trust, Locals()), Audit(folder / "audit")


def bare(folder: Path, path: Path):
    return (bare_app(), path, *guards(folder))


def known(folder: Path, name: str) -> PeerRecord:
    """A host of that name, with an identity in `folder`."""
    own = identity.ensure(folder / name, name, "127.0.0.1")
    return PeerRecord(name=name, url="https://127.0.0.1:7443", certificate=own.pem)


def trust_of(folder: Path) -> Trust:
    """What alpha trusts: beta, and nobody else."""
    trust = Trust(folder / "peers", identity.ensure(folder / "identity", "alpha", "127.0.0.1"))
    trust._store.write_now("beta", known(folder, "beta"))
    return Trust(folder / "peers", trust.own)


def https(folder: Path, port: int = 0) -> HTTPS:
    return HTTPS(address="127.0.0.1", port=port, trust=trust_of(folder))


async def over_tls(folder: Path, port: int, *, who="beta", versions=None, path="/v1", headers=None):
    context = ssl.create_default_context(cafile=str(folder / "identity" / "certificate.pem"))
    if versions:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = versions
    if who:
        context.load_cert_chain(folder / who / "certificate.pem", folder / who / "key.pem")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        return await exchange((reader, writer), "GET", path, headers=headers)
    finally:
        await hang_up(writer)


@in_loop
async def test_the_socket_is_for_its_owner_from_its_first_instant(tmp_path, monkeypatch):
    """Whatever the umask: the file is looked at right after bind made it."""
    seen: list[int] = []
    bind = socket.socket.bind

    class Watched(socket.socket):
        def bind(self, address):
            bind(self, address)
            if self.family == socket.AF_UNIX:
                seen.append(stat.S_IMODE(Path(address).stat().st_mode))

    monkeypatch.setattr(listeners.socket, "socket", Watched)
    before = os.umask(0)
    try:
        async with an_api(tmp_path) as api:
            seen.append(stat.S_IMODE(api.socket.stat().st_mode))
            assert [file.name for file in tmp_path.glob("s.sock*")] == ["s.sock"]
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]
    assert list(tmp_path.glob("s.sock*")) == []


@in_loop
async def test_a_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path):
    path = tmp_path / "s.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    async with an_api(tmp_path) as api:
        assert (await api.ask("GET", "/v1"))[0] == 200
        with pytest.raises(ListenFailed, match="another sternad"):
            async with listen(*bare(tmp_path, path)):
                pass
        assert (await api.ask("GET", "/v1"))[0] == 200
    assert not path.exists()


@in_loop
async def test_a_socket_that_cannot_be_made_is_one_sentence(tmp_path):
    deep = tmp_path / ("x" * 60) / ("y" * 60) / "s.sock"
    with pytest.raises(ListenFailed, match="too long"):
        async with listen(*bare(tmp_path, deep)):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ListenFailed, match=r"cannot listen on .*: File exists"):
        async with listen(*bare(tmp_path, tmp_path / "file" / "s.sock")):
            pass


@in_loop
async def test_https_asks_for_a_known_certificate_and_the_socket_does_not(tmp_path):
    known(tmp_path, "gamma")
    async with an_api(tmp_path, https(tmp_path)) as api:
        assert (await api.ask("GET", "/v1"))[0] == 200
        assert (await over_tls(tmp_path, api.port))[0] == 200
        for path in ("/nothing", "/v1/events", "/v1/pairing", "/v1/peer/paired"):
            for headers in ({}, {"Authorization": "Bearer 0123456789abcdef"}):
                status, _, problem = await over_tls(
                    tmp_path, api.port, who="", path=path, headers=headers
                )
                assert (status, problem["code"]) == (401, "access.not-proven")
        with pytest.raises(HUNG_UP):
            await over_tls(tmp_path, api.port, who="gamma")


@in_loop
async def test_trust_that_ends_ends_a_connection_and_trust_that_begins_needs_no_new_listener(
    tmp_path,
):
    wanted = https(tmp_path)
    async with an_api(tmp_path, wanted) as api:
        context = wanted.trust.client(
            PeerRecord(name="alpha", url="https://127.0.0.1:1", certificate=wanted.trust.own.pem)
        )
        context.load_cert_chain(tmp_path / "beta/certificate.pem", tmp_path / "beta/key.pem")
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port, ssl=context)
        writer.write(b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await wanted.trust.remove("beta")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() != b"still here"  # it ends
        await hang_up(writer)
        with pytest.raises(HUNG_UP):
            await over_tls(tmp_path, api.port)
        await wanted.trust.put(known(tmp_path, "gamma"))
        assert (await over_tls(tmp_path, api.port, who="gamma"))[0] == 200


@in_loop
async def test_the_configuration_says_where_it_listens(tmp_path):
    settings = Config(
        name="alpha",
        state_dir=tmp_path,
        run_dir=tmp_path,
        listen=Listen(address="127.0.0.1", port=0),
    )
    trust = trust_of(tmp_path)
    async with serve(bare_app(), settings, trust, *guards(tmp_path, trust)) as listening:
        assert listening.socket == tmp_path / "sternad.sock"
        answer = await over_tls(tmp_path, listening.port, path="/v1/openapi.json")
        assert (answer[0], answer[2]["info"]["title"]) == (200, "Sterna")
    async with serve(
        bare_app(), replace(settings, listen=None), trust, *guards(tmp_path, trust)
    ) as listening:
        assert listening.port == 0


@in_loop
async def test_https_speaks_tls_1_3_only(tmp_path):
    async with an_api(tmp_path, https(tmp_path)) as api:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await over_tls(tmp_path, api.port, versions=ssl.TLSVersion.TLSv1_2)
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in await reader.read()
        await hang_up(writer)


@in_loop
async def test_an_application_without_a_listener_that_vouches_refuses_everything(tmp_path):
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": "GET", "path": "/v1", "raw_path": b"/v1", "query_string": b"",
        "headers": [], "scheme": "http", "server": None, "client": None, "root_path": "",
        "http_version": "1.1",
    }  # fmt: skip
    await bare_app()(scope, receive, send)
    assert sent[0]["status"] == 401


@in_loop
async def test_https_that_cannot_listen_leaves_no_socket_behind(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenFailed, match=f"127.0.0.1 port {port}"):
            async with listen(*bare(tmp_path, tmp_path / "s.sock"), https(tmp_path, port)):
                pass
    wanted = https(tmp_path)
    (tmp_path / "identity" / "key.pem").write_text("no key")
    with pytest.raises(ListenFailed, match="do not serve"):
        async with listen(*bare(tmp_path, tmp_path / "s.sock"), wanted):
            pass
    assert list(tmp_path.glob("s.sock*")) == []


@in_loop
async def test_what_goes_wrong_inside_is_raised_as_it_is_after_the_listeners_ended(tmp_path):
    with pytest.raises(ZeroDivisionError):
        async with listen(*bare(tmp_path, tmp_path / "s.sock")):
            raise ZeroDivisionError
    assert list(tmp_path.glob("s.sock*")) == []


@in_loop
async def test_a_connection_that_says_nothing_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(listeners, "FIRST_REQUEST_S", 0.05)
    async with an_api(tmp_path) as api:
        reader, writer = await asyncio.open_unix_connection(api.socket)
        writer.write(b"GET /v1 HTTP/1.1\r\nHost:")
        assert await reader.read() == b""
        await hang_up(writer)


@in_loop
async def test_strangers_never_keep_hosts_out(tmp_path, monkeypatch):
    monkeypatch.setattr(listeners, "MAX_UNKNOWN", 3)
    async with an_api(tmp_path, https(tmp_path)) as api:
        context = ssl.create_default_context(cafile=str(tmp_path / "identity/certificate.pem"))
        idle = [await asyncio.open_connection("127.0.0.1", api.port, ssl=context) for _ in range(3)]
        with pytest.raises(HUNG_UP):
            await over_tls(tmp_path, api.port, who="")
        assert (await over_tls(tmp_path, api.port))[0] == 200
        await hang_up(idle.pop()[1])
        assert (await over_tls(tmp_path, api.port, who=""))[0] == 401
        for _, writer in idle:
            await hang_up(writer)


@in_loop
async def test_a_body_that_dawdles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(access, "BODY_S", 0.05)
    async with an_api(tmp_path) as api:
        reader, writer = await asyncio.open_unix_connection(api.socket)
        writer.write(b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in await reader.readuntil(b"\r\n")
        await hang_up(writer)


@in_loop
async def test_leaving_lets_a_request_under_way_end(tmp_path):
    started = asyncio.Event()
    async with an_api(tmp_path) as api:
        await api.ask("POST", "/v1/vms", {"name": "web"})
        become = api.vms._become

        async def slowly(ref: str, state: str) -> dict:
            started.set()
            await asyncio.sleep(0.3)
            return await become(ref, state)

        api.vms._become = slowly
        asking = asyncio.ensure_future(api.ask("POST", "/v1/vms/web:start"))
        await started.wait()
    status, _, view = await asking
    assert (status, view["state"]) == (200, "running")


@in_loop
async def test_leaving_does_not_wait_for_one_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(listeners, "GRACE_S", 0.1)
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with an_api(tmp_path) as api:
        await api.ask("POST", "/v1/vms", {"name": "web"})

        async def never(ref: str, state: str) -> dict:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

        api.vms._become = never
        asking = asyncio.ensure_future(api.ask("POST", "/v1/vms/web:start"))
        await started.wait()
        began = loop.time()
    assert loop.time() - began < 3
    await asyncio.wait([asking])
    assert asking.exception() or asking.result()[0] == 500
