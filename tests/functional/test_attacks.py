"""What strangers, thieves and liars try on the network of a real daemon: refused, nothing changed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from attacker import PORT, Attacker

from api_rig import hang_up
from checking import Administrator, make
from sterna.security import identity, invitation

pytestmark = pytest.mark.functional
GET = b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def lab(lab_keeper):
    made = lab_keeper.lab()
    make(made.hosts[0])
    yield made
    lab_keeper.clean()


@pytest.fixture
def attacker(lab, tmp_path):
    one = Attacker(lab, tmp_path)
    yield one
    one.has_changed_nothing()


def test_without_a_certificate_there_is_one_door(attacker):
    for method, path in (
        ("GET", "/v1"),
        ("GET", "/v1/openapi.json"),
        ("DELETE", "/v1/vms/tern"),
        ("POST", "/v1/invitations"),
        ("POST", "/v1/peer/paired"),
        ("POST", "/v1/pairing/"),
        ("POST", "//v1/pairing"),
        ("POST", "/v1/pairing/../vms/tern:start"),
        ("POST", "/v1/pairing%2f..%2fpeers"),
        ("GET", "/v1/pairing"),
    ):
        assert attacker.ask(method, path) == (401, "access.not-proven"), path


def test_a_certificate_that_nobody_knows_does_not_get_as_far_as_a_request(attacker):
    assert attacker.send(GET, attacker.stranger()) == b""
    assert attacker.send(GET, attacker.stranger("hv-b")) == b""  # the name of a peer proves nothing
    rows = attacker.victim.client.get("/v1/audit")[:2]
    assert [(one["code"], one["text"]) for one in rows] == [
        ("access.tls", "self-signed certificate")
    ] * 2


def test_what_a_peer_has_signed_is_a_strangers(attacker):
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415

    thief, stranger = attacker.thief(), attacker.stranger()
    key = serialization.load_pem_private_key(thief.key.read_bytes(), None)
    issuer = x509.load_pem_x509_certificate(thief.pem.encode())
    base = x509.load_pem_x509_certificate(stranger.pem.encode())
    signed = x509.CertificateBuilder(
        issuer.subject, base.subject, base.public_key(), 7,
        base.not_valid_before_utc, base.not_valid_after_utc, list(base.extensions),
    ).sign(key, hashes.SHA256())  # fmt: skip
    pem = signed.public_bytes(serialization.Encoding.PEM).decode()
    stranger.certificate.write_text(pem + thief.pem)
    assert attacker.send(GET, stranger) == b""


def test_a_peers_certificate_that_has_ended_is_worth_nothing(attacker, monkeypatch):
    monkeypatch.setattr(identity, "LIFETIME", timedelta(minutes=30))
    expired = attacker.stranger("old")
    token = attacker.invite()
    status, _ = attacker.ask("POST", "/v1/pairing", attacker.request(token, expired, name="old"))
    assert status in (200, 400, 422)  # a guest for a while at most: it can never confirm
    assert attacker.send(b"POST /v1/peer/paired HTTP/1.1\r\nHost: x\r\n\r\n", expired) == b""


def test_tls_1_2_and_plain_http_are_not_spoken(attacker):
    with pytest.raises(OSError):  # an alert, or a connection that has gone
        attacker.send(GET, newest=ssl.TLSVersion.TLSv1_2)

    async def plain() -> bytes:
        reader, writer = await asyncio.open_connection(attacker.victim.address, PORT)
        writer.write(GET)
        answer = b""
        with contextlib.suppress(OSError):
            answer = await reader.read()
        await hang_up(writer)
        return answer

    assert b"200" not in attacker.inside(plain)


def test_a_token_is_of_no_use_changed_late_or_to_another(attacker):
    own = attacker.stranger()
    token = attacker.invite()
    good = attacker.request(token, own)
    refused = (403, "trust.token-refused")
    for bad in (
        {**good, "proof": "0" * 64},
        {**good, "name": "hv-z"},
        {**good, "url": "https://10.91.0.99:7443"},
        {**good, "certificate": attacker.stranger("other").pem},
        {**good, "invitation": "0" * 16},
    ):
        assert attacker.ask("POST", "/v1/pairing", bad) == refused
    short = attacker.invite(expires_s=1)
    time.sleep(1.1)
    assert attacker.ask("POST", "/v1/pairing", attacker.request(short, own)) == refused
    assert attacker.ask("POST", "/v1/pairing", attacker.request(token, own))[0] == 200
    second = attacker.stranger("second")
    assert attacker.ask("POST", "/v1/pairing", attacker.request(token, second)) == refused
    # A guest is known by its key, and can be reached nowhere: it never becomes a peer.
    status, code = attacker.ask("POST", "/v1/peer/paired", own=own)
    assert (status, code) == (500, "trust.not-reached")
    assert attacker.ask("GET", "/v1/vms", own=own) == (401, "access.not-proven")


def test_a_join_that_is_sent_again_after_its_host_is_distrusted_is_refused(attacker, lab):
    here, there = lab.hosts
    Administrator(here).run("sterna host distrust hv-b")
    Administrator(there).run("sterna host distrust hv-a")
    token = attacker.invite()
    Administrator(there).run(f"sterna host join {token}")
    attacker.before = attacker.state()  # but for the time of the record, as before
    replayed = attacker.request(
        token, attacker.thief(), name="hv-b", url=f"https://{there.address}:{PORT}"
    )
    refused = (403, "trust.token-refused")
    assert attacker.ask("POST", "/v1/pairing", replayed) == refused
    Administrator(here).run("sterna host distrust hv-b")
    assert attacker.ask("POST", "/v1/pairing", replayed) == refused
    assert attacker.send(GET, attacker.thief()) == b""
    again = Administrator(there).ask(f"sterna host join {token}")
    assert again.returncode == 5
    assert "it has been used" in again.stderr
    Administrator(there).ask("sterna host distrust hv-a")
    there.pair(here)
    attacker.before = attacker.state()


def test_nobody_joins_under_the_name_of_another(attacker):
    own = attacker.stranger()
    token = attacker.invite()
    for name in ("hv-b", "hv-a"):
        taken = attacker.request(token, own, name=name)
        assert attacker.ask("POST", "/v1/pairing", taken) == (409, "trust.peer-exists")
    for name in ("../../etc/passwd", "a/b", ".", "A", "x\n", "x" * 200, ""):
        odd = attacker.request(token, own, name=name)
        status, _ = attacker.ask("POST", "/v1/pairing", odd)
        assert status in (400, 422), name
    for url in ("http://x:1", "https://x", "https://a@x:1", "file:///etc/passwd", "https://x:1/p"):
        odd = attacker.request(token, own, url=url)
        assert attacker.ask("POST", "/v1/pairing", odd)[0] in (400, 422), url


def test_a_peer_speaks_for_itself_only(attacker):
    reservation = {
        "operation": "0" * 8, "epoch": 2, "source": "hv-c", "live": False, "paused": False,
        "accel": "", "spec": {"name": "liar", "id": "00000000-0000-0000-0000-000000000001"},
    }  # fmt: skip
    for path in ("/v1/peer/reservations", "/v1/peer/checks"):
        denied = attacker.ask("POST", path, reservation, own=attacker.thief())
        assert denied == (403, "access.denied")
    hostile = {"certificate": attacker.victim.folder.joinpath("nothing").as_posix()}
    odd = attacker.ask("POST", "/v1/peer/certificate", hostile, own=attacker.thief())
    assert odd[0] in (400, 422)


def test_bodies_that_are_large_or_slow_are_cut_off(attacker):
    head = b"POST /v1/pairing HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert b" 413 " in attacker.send(head + b"Content-Length: 40000\r\n\r\n" + b"x" * 40000)
    chunk = b"%x\r\n%s\r\n" % (20000, b"x" * 20000)
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3
    assert b" 413 " in attacker.send(chunked)
    began = time.monotonic()
    slow = [head + b"Content-Length: 100\r\n\r\n", *[b"{" for _ in range(8)]]
    assert b" 408 " in attacker.send(slow)
    assert time.monotonic() - began < 9


def test_a_request_hidden_in_another_is_not_one(attacker):
    hidden = b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /v1/pairing HTTP/1.1\r\nHost: x\r\n"
    for lines in (
        b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(hidden),
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(hidden),
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length : 5\r\n",
        b"X: a\r\n b\r\n\x00: c\r\n",
    ):
        answer = attacker.send(head + lines + b"\r\n" + hidden)
        assert b"tern" not in answer
        assert b" 200 " not in answer
    for name in (b"X-Forwarded-For", b"X-Client-Cert", b"X-SSL-Client-Verify", b"Forwarded"):
        forged = (
            b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + name + b": hv-b\r\n\r\n"
        )
        assert b" 401 " in attacker.send(forged)


def test_names_are_never_paths(attacker):
    for path in (
        "/v1/vms/..%2f..%2fetc%2fpasswd",
        "/v1/hosts/..%2f..%2fpeers",
        "/v1/operations/..%2fjournal",
    ):
        assert attacker.ask("GET", path, own=attacker.thief())[0] == 404
    assert attacker.ask("DELETE", "/v1/peers/..%2fidentity", own=attacker.thief())[0] == 404


def test_who_answers_for_the_inviter_gets_nothing(attacker, lab):
    """The address of the token leads to somebody else: not even a name is sent there."""
    here, there = lab.hosts
    own = attacker.stranger()
    heard: list[bytes] = []

    async def lie() -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own.certificate, own.key)

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                heard.append(await reader.read(100))
            writer.transport.abort()

        async with await asyncio.start_server(listen, there.address, 7998, ssl=context):
            token = attacker.invite()
            fake = invitation.Token(
                id=token.id, name=token.name, url=f"https://{there.address}:7998",
                fingerprint=token.fingerprint, expires=token.expires, secret=token.secret,
            )  # fmt: skip
            return await asyncio.to_thread(Administrator(there).ask, f"sterna host join {fake}")

    Administrator(there).run("sterna host distrust hv-a")
    done = attacker.inside(lie)
    assert done.returncode == 5
    assert "does not answer as the host that made the token" in done.stderr
    assert b"".join(heard) == b""
    there.pair(here)
    attacker.before = attacker.state()


def test_no_secret_is_in_a_log_a_record_or_a_command_line(attacker, lab):
    """Everything the two daemons have written and their processes show, searched for all secrets."""
    token = attacker.invite()
    attacker.ask("POST", "/v1/pairing", attacker.request(token, attacker.stranger()))
    Administrator(lab.hosts[1]).ask(f"sterna host join {str(token)[:-3]}xyz")
    keys = [(host.folder / "state/identity/key.pem").read_text() for host in lab.hosts]
    needles = [
        token.secret.hex(),
        base64.b64encode(token.secret).decode(),
        str(token)[20:60],
        str(token)[-40:],
        *(key.splitlines()[1] for key in keys),
    ]
    found = []
    for path in lab.folder.rglob("*"):
        if path.is_file() and path.name != "key.pem" and path.stat().st_size < 1 << 24:
            data = path.read_bytes()
            found += [(path, one) for one in needles if one.encode() in data]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            found += [(process, one) for one in needles if one.encode() in line]
    assert found == []
