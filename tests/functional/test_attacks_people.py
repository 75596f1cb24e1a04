"""What is tried against users, sessions, tokens and the audit of a real daemon.

After each attempt: it was refused, it is in the audit, nothing has changed, the daemon is well.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from attacker import PORT, Attacker

from checking import SCRIPT, Administrator, make, restart
from operations_rig import in_loop
from sterna.errors import LogInRefused
from sterna.model.access import Role, UserWishes
from sterna.security.authority import Authority
from sterna.security.local import Locals

pytestmark = pytest.mark.functional
PASSWORD = "correct-horse-9137"
COOKIE = "__Host-sterna"


class Thief(Attacker):
    """Without a certificate; what the administrator makes is of this test."""

    def __init__(self, lab, folder: Path) -> None:
        super().__init__(lab, folder)
        self.admin = Administrator(self.victim)
        self.began = self.victim.client.get("/v1/audit/verdict")["last"]

    def token(self, name: str, role: str = "viewer", host: Any = None, **more: Any) -> str:
        body = {"name": name, "role": role, **more}
        made = str((host or self.victim).client.post("/v1/tokens", body)["token"])
        self.before = self.state()
        return made

    def user(self, name: str, role: str = "operator", password: str = PASSWORD) -> None:
        self.victim.client.post("/v1/users", {"name": name, "role": role, "password": password})
        self.before = self.state()

    def log_in(self, user: str, password: str = PASSWORD, **headers: str) -> dict[str, str]:
        """The headers of a session."""
        body = {"user": user, "password": password}
        status, head, found = self.exchange("POST", "/v1/sessions", body, headers=headers)
        assert status == 201, found
        cookie = re.search(rf"set-cookie: ({COOKIE}=\S+); (.*)", head, re.IGNORECASE)
        assert cookie is not None
        rules = {one.strip().lower() for one in cookie[2].split(";")}
        assert {"path=/", "secure", "httponly", "samesite=strict"} <= rules
        return {"Cookie": cookie[1], "X-CSRF-Token": found["csrf"]}

    def bearer(self, method: str, path: str, token: str, body: Any = None, **more: str):
        return self.ask(method, path, body, headers={"Authorization": f"Bearer {token}", **more})

    def audit(self, *codes: str) -> list[dict[str, Any]]:
        """What was written down since the test began; refusals with all these codes are in it."""
        rows = self.victim.client.get("/v1/audit", {"limit": 500})
        rows = [one for one in rows if one["n"] > self.began]
        assert set(codes) <= {one.get("code") for one in rows}, rows
        return rows


@pytest.fixture(scope="module")
def lab(lab_keeper):
    made = lab_keeper.lab()
    for name, tags in (("tern", ["bank"]), ("gull", ["shop"])):
        make(made.hosts[0], name, tags=tags)
    yield made
    lab_keeper.clean()


@pytest.fixture
def thief(lab, tmp_path):
    one = Thief(lab, tmp_path)
    yield one
    one.has_changed_nothing()
    for host in lab.hosts:
        for path in ("users", "tokens"):
            for found in host.client.get(f"/v1/{path}"):
                host.client.delete(f"/v1/{path}/{found['name']}")
    assert one.victim.client.get("/v1/audit/verdict")["broken"] == ""


def test_tokens_that_are_expired_revoked_forged_or_anothers(thief, lab):
    refused = (401, "access.not-proven")
    good = thief.token("good")
    assert thief.bearer("GET", "/v1/vms", good)[0] == 200
    short = thief.token("short", expires_s=1)
    revoked = thief.token("revoked")
    lab.hosts[0].client.delete("/v1/tokens/revoked")
    thief.before = thief.state()
    elsewhere = thief.token("good", host=lab.hosts[1])
    kind, key, secret = good.split(".")
    time.sleep(1.1)
    for bad in (
        short,
        revoked,
        elsewhere,
        f"{kind}.{key}.{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}",
        f"{kind}.{key}.{secret[:-1]}",
        f"{kind}.{key}.",
        f"{kind}.{revoked.split('.')[1]}.{secret}",
        f"{kind}.../../peers/hv-b.{secret}",
        f"{good} {good}",
        secret,
        "",
        "x" * 9000,
    ):
        assert thief.bearer("GET", "/v1/vms", bad) == refused, bad[:20]
    for header in (f"Basic {good}", good, f"bearer{good}", "Bearer"):
        answer = thief.ask("GET", "/v1/vms", headers={"Authorization": header})
        assert answer == refused, header[:12]
    twice = f"GET /v1/vms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {good}\r\n".encode()
    assert b" 401 " in thief.send(twice + twice.partition(b"Host: x\r\n")[2] + b"\r\n")
    # What is said counts alone: a good certificate does not help a bad token, nor a peer's name.
    with_key = {"Authorization": f"Bearer {revoked}"}
    assert thief.ask("GET", "/v1/vms", own=thief.thief(), headers=with_key) == refused
    assert thief.ask("GET", f"/v1/vms?token={good}") == refused
    refusals = [one for one in thief.audit("access.not-proven") if one["what"] == "refused"]
    assert {one["who"] for one in refusals} == {"nobody"}
    assert len(refusals) == 19


def test_roles_that_are_too_low_or_only_claimed(thief):
    viewer = thief.token("eye")
    operator = thief.token("hand", "operator", tag="shop")
    too_low = (403, "access.role")
    for method, path in (
        ("POST", "/v1/vms/tern:start"),
        ("DELETE", "/v1/vms/tern"),
        ("POST", "/v1/tokens"),
        ("DELETE", "/v1/peers/hv-b"),
        ("POST", "/v1/host/drain"),
        ("GET", "/v1/audit"),
        ("POST", "/v1/peer/reservations"),
    ):
        assert thief.bearer(method, path, viewer, {}) == too_low, path
    for name in ("X-Role", "Sterna-Role", "Sterna-For", "X-Remote-User", "X-Forwarded-User"):
        assert thief.bearer("DELETE", "/v1/vms/tern", viewer, None, **{name: "admin"}) == too_low
    assert thief.ask("GET", "/v1/vms", headers={"X-Remote-User": "root"})[0] == 401
    # A role for one tag knows of no other VM, by whatever name.
    (tern,) = [one for one in thief.victim.client.get("/v1/vms") if one["name"] == "tern"]
    for name in ("tern", tern["id"], "..%2fvms%2ftern", "gull%00", "gull/../tern"):
        for method, path in (("GET", ""), ("POST", ":start"), ("DELETE", "")):
            status, code = thief.bearer(method, f"/v1/vms/{name}{path}", operator)
            assert (status, code.partition(".")[0]) in ((404, "vm"), (404, "request")), name
    changes = {"tags": ["shop", "bank"]}
    assert thief.bearer("PATCH", "/v1/vms/gull", operator, changes) == too_low
    copy = {"name": "copy", "disks": [{"name": "vda", "pool": "local", "image": "/etc/shadow"}]}
    assert thief.bearer("POST", "/v1/vms", operator, copy) == too_low
    rows = thief.audit("access.role", "vm.not-found")
    refused = [one["who"] for one in rows if one["what"] == "refused"]
    assert set(refused) == {"token:eye", "token:hand", "nobody"}
    assert refused.count("nobody") == 1


def test_brute_force_is_locked_out_and_a_restart_is_no_fresh_start(thief, lab):
    thief.user("alice")
    good = {"user": "alice", "password": PASSWORD}
    for n in range(5):
        bad = {"user": "alice", "password": f"password-{n}-wrong"}
        assert thief.ask("POST", "/v1/sessions", bad) == (401, "access.log-in")
    assert thief.ask("POST", "/v1/sessions", good) == (429, "access.locked-out")  # however right
    restart(lab.hosts[0])
    assert thief.ask("POST", "/v1/sessions", good) == (429, "access.locked-out")
    rows = thief.audit("access.log-in", "access.locked-out")
    tried = [one for one in rows if one["path"] == "/v1/sessions" and one["what"] == "refused"]
    assert {(one["who"], one["from"]) for one in tried} == {("alice", thief.peer.address)}
    assert len(tried) == 7
    # Root of the host lets her in again.
    new = {"password": PASSWORD + "2"}
    assert lab.hosts[0].client.put("/v1/users/alice/password", new)["name"] == "alice"
    thief.before = thief.state()
    assert thief.log_in("alice", PASSWORD + "2")


def test_names_of_users_are_never_paths_nor_secrets_that_are_written_down(thief):
    admin = thief.token("boss", "admin")
    for name in ("../../etc/passwd", "..", ".", "a/b", "a\x00b", "A", "", "x" * 64, "a\nb", "é"):
        wishes = {"name": name, "role": "viewer"}
        for path in ("/v1/users", "/v1/tokens"):
            assert thief.bearer("POST", path, admin, wishes)[0] == 400, name
    for path in ("users/..%2fpeers%2fhv-b", "users/..%2f..%2fx", "tokens/..%2fpeers%2fhv-b"):
        assert thief.bearer("DELETE", f"/v1/{path}", admin)[0] == 404
    for user in ("../../etc/passwd", PASSWORD, "x" * 9000, "alice\r\nX: y", "\ud800", ""):
        body = {"user": user, "password": "whatever-it-is"}
        assert thief.ask("POST", "/v1/sessions", body)[0] in (400, 401), user[:20]
    rows = thief.audit("access.log-in")
    assert {one["who"] for one in rows if one["path"] == "/v1/sessions"} == {"unknown user"}


def test_sessions_that_are_planted_replayed_or_used_from_another_page(thief, lab):
    thief.user("alice", "admin")
    planted = {"Cookie": f"{COOKIE}={'A' * 43}"}
    first = thief.log_in("alice", Cookie=planted["Cookie"])
    assert first["Cookie"] != planted["Cookie"]
    second = thief.log_in("alice", Cookie=first["Cookie"])
    assert second["Cookie"] != first["Cookie"]
    refused = (401, "access.not-proven")
    assert thief.ask("GET", "/v1/me", headers=planted) == refused
    both = {"Cookie": f"{first['Cookie']}; {planted['Cookie']}"}
    assert thief.ask("GET", "/v1/me", headers=both) == refused
    assert thief.ask("GET", "/v1/me", headers=first)[0] == 200
    # Another page can make a browser send the cookie, and nothing else.
    forged = (403, "access.csrf")
    delete = ("DELETE", "/v1/vms/tern")
    for csrf in (None, "", "x", second["X-CSRF-Token"]):
        said = {"Cookie": first["Cookie"]} | ({} if csrf is None else {"X-CSRF-Token": csrf})
        assert thief.ask(*delete, headers={**said, "Origin": "https://evil.example"}) == forged
        in_query = f"{delete[1]}?csrf={first['X-CSRF-Token']}"
        assert thief.ask(delete[0], in_query, headers=said) == forged
    assert thief.ask("POST", "/v1/vms/none:start", headers=first) == (404, "vm.not-found")
    # What was logged out is nobody's, with its CSRF token too; the other session goes on.
    assert thief.ask("DELETE", "/v1/sessions/current", headers=first)[0] == 204
    assert thief.ask("GET", "/v1/me", headers=first) == refused
    assert thief.ask(*delete, headers=first) == refused
    assert thief.ask("GET", "/v1/me", headers=second)[0] == 200
    assert thief.ask("GET", "/v1/me", headers={"Cookie": first["Cookie"].lower()}) == refused
    # A new password ends them all, and so does the user's end, with what is under way.
    wishes = {"password": PASSWORD + "3", "current": PASSWORD}
    third = thief.log_in("alice")
    assert thief.ask("PUT", "/v1/users/alice/password", wishes, headers=third)[0] == 200
    for old in (second, third):
        assert thief.ask("GET", "/v1/me", headers=old) == refused
    fourth = thief.log_in("alice", PASSWORD + "3")
    began = time.monotonic()
    head = "".join(f"{key}: {value}\r\n" for key, value in fourth.items())
    stream = f"GET /v1/events HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode()
    killer = subprocess.Popen(
        thief.victim.command(["sh", "-c", f"sleep 1; {SCRIPT} --host {thief.victim.url} user delete alice"]),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert b"text/event-stream" in thief.send(stream)  # until it was hung up
    assert 0.9 < time.monotonic() - began < 7
    assert killer.wait() == 0
    assert thief.ask("GET", "/v1/me", headers=fourth) == refused
    thief.before = thief.state()
    rows = thief.audit("access.csrf", "access.not-proven")
    assert not {one["who"] for one in rows} - {"alice", "nobody", "local:root"}


def test_bodies_of_strangers_are_small_and_quick_and_one(thief):
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert b" 413 " in thief.send(head + b"Content-Length: 40000\r\n\r\n" + b"x" * 40000)
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"4e20\r\n" + b"x" * 20000 + b"\r\n"
    assert b" 413 " in thief.send(chunked + b"4e20\r\n" + b"x" * 20000 + b"\r\n")
    slow = [head + b"Content-Length: 100\r\n\r\n", *[b"{" for _ in range(8)]]
    began = time.monotonic()
    assert b" 408 " in thief.send(slow)
    assert time.monotonic() - began < 9
    hidden = b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n"
    for lines in (
        b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(hidden),
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(hidden),
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length : 5\r\n",
    ):
        answer = thief.send(head + lines + b"\r\n" + hidden)
        assert b"tern" not in answer
        assert b" 200 " not in answer
    for body in (None, [], {}, {"user": 1, "password": []}, {"user": "a", "password": "x" * 20000}):
        assert thief.ask("POST", "/v1/sessions", body)[0] in (400, 401)


def test_an_audit_that_somebody_has_changed_says_where(thief, lab):
    here = lab.hosts[0]
    folder = here.folder / "state" / "audit"
    (file,) = folder.glob("audit-*.jsonl")
    noted = thief.admin.run("sterna audit verify").splitlines()[-1]
    thief.admin.run("sterna vm set gull --tag shop,sea --reason 'a change to hide'")
    assert "a change to hide" in thief.admin.run("sterna audit list --vm gull")
    whole, head = file.read_bytes(), (folder / "head").read_bytes()
    lines = whole.splitlines(keepends=True)
    (row,) = [n for n, line in enumerate(lines) if b"a change to hide" in line]
    for harmed, place in (
        (whole.replace(b"a change to hide", b"nothing to see  "), f"line {row + 1}"),
        (b"".join(lines[:row]), f"line {row}: lines {row + 1} to {row + 2} are missing"),
        (b"".join(lines[:row] + lines[row + 1 :]), f"line {row + 1}: it is number {row + 2}"),
    ):
        file.write_bytes(harmed)
        done = thief.admin.ask("sterna audit verify")
        assert (done.returncode, place in done.stderr) == (1, True), done.stderr
        file.write_bytes(whole)
        (folder / "head").write_bytes(head)
    thief.admin.run(f"sterna audit verify --expect {noted}")
    done = thief.admin.ask(f"sterna audit verify --expect {noted[:-4]}0000")
    assert done.returncode == 1
    exported = thief.folder / "export.jsonl"
    thief.admin.run(f"sterna audit export {exported}")
    assert exported.read_bytes().startswith(whole)
    # A crash in the middle of a line.
    here.kill()
    file.write_bytes(file.read_bytes() + b'{"n":99,"pre')
    here.start()
    here.wait_ready()
    assert "cut off in the middle of a line: 12 bytes" in thief.admin.run("sterna audit list")
    thief.admin.run("sterna audit verify")
    thief.admin.run("sterna vm set gull --tag shop")
    thief.before = thief.state()


def test_secrets_are_nowhere_but_where_they_were_given(thief, lab, monkeypatch):
    """Canaries, and everything that the daemon and the commands leave is searched for them."""
    here = lab.hosts[0]
    home = thief.folder / "home"
    env = {**os.environ, "STERNA_CONFIG": str(here.config), "XDG_CONFIG_HOME": str(home)}
    seen: list[bytes] = []

    def typed(line: str, text: str) -> str:
        """Run with that on standard input; its command line is looked at meanwhile."""
        with subprocess.Popen(
            thief.victim.command([str(SCRIPT), *line.split()]), env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
            out, err = process.communicate(text + "\n", timeout=60)
            assert process.returncode == 0, err
            seen.append(err.encode())
        return out

    typed("user create carol --role admin", "canary-password-1")
    typed("user passwd carol", "canary-password-2")
    session = thief.log_in("carol", "canary-password-2")
    token = thief.admin.run("sterna token create ci --role operator --expires 1h").split()[-1]
    thief.ask("POST", "/v1/sessions", {"user": "canary-user-3", "password": "canary-password-4"})
    thief.ask("PUT", "/v1/users/carol/password", {"password": "canary-password-5", "x": 1},
              headers=session)  # fmt: skip
    thief.bearer("POST", "/v1/vms", token, {"name": "canary-body-6", "secret": "canary-body-7"})
    where = f"--host https://{here.address}:{PORT} --certificate {here.folder}/state/identity/certificate.pem"
    seen.append(typed(f"{where} login", token).encode())
    kept = next((home / "sterna" / "tokens").iterdir())
    assert kept.stat().st_mode & 0o777 == 0o600
    found = json.loads(typed(f"{where} -o json vm show gull", ""))
    assert found["name"] == "gull"
    invitation = thief.victim.client.post("/v1/invitations", {})["token"]
    canaries = [b"canary-", session["Cookie"].split("=")[1].encode(), token.split(".")[2].encode(),
                session["X-CSRF-Token"].encode(), invitation.encode()[-40:]]  # fmt: skip
    files = [path for path in here.folder.rglob("*") if path.is_file() and path.suffix != ".img"]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes() if path.stat().st_size < 32 << 20 else b""
        for canary in canaries:
            assert canary not in data, path
    assert not [text for text in seen for canary in canaries if canary in text]
    assert (here.folder / "state" / "users" / "carol.json").stat().st_mode & 0o777 == 0o600
    thief.before = thief.state()


def test_a_host_without_a_role_can_move_vms_and_nothing_else(thief, lab):
    here, there = lab.hosts
    both = (thief.admin, there), (Administrator(there), here)
    for admin, other in both:
        admin.run(f"sterna host set-role {other.name} none")
        assert f"{other.name} " in admin.run("sterna host list")
        (row,) = [one for one in admin.host.client.get("/v1/hosts") if one["state"] == "up"]
        assert (row["name"], row["role"]) == (other.name, "none")
    thief.before = thief.state()
    own = thief.thief()
    for method, path in (
        ("GET", "/v1/vms"), ("GET", "/v1/hosts"), ("POST", "/v1/vms/tern:start"), ("GET", "/v1/audit"),
        ("PATCH", "/v1/peers/hv-b"), ("POST", "/v1/vms/tern/moves"), ("POST", "/v1/tokens"),
    ):  # fmt: skip
        answer = thief.ask(method, path, {"role": "admin"}, own=own)
        assert answer == (403, "access.role"), path
    asked = Administrator(there).ask("sterna --host hv-a vm list")
    assert (asked.returncode, "host:hv-b has no role" in asked.stderr) == (5, True), asked.stderr
    thief.admin.run("sterna check tern hv-b")
    thief.admin.run("sterna --reason 'ticket 4711' move tern hv-b")
    Administrator(there).run("sterna move tern hv-a")
    (row,) = [
        one for one in there.client.get("/v1/audit", {"who": "local:root"})
        if one.get("path") == "/v1/peer/reservations"
    ]  # fmt: skip
    assert (row["via"], row["status"]) == ("host:hv-a", 201)
    refused = here.client.get("/v1/audit", {"who": "host:hv-b"})
    (cli,) = [one for one in refused if "via" in one and one["what"] == "refused"]
    assert (cli["who"], cli["code"]) == ("local:root", "access.role")
    begun = [one for one in here.client.get("/v1/operations") if one["kind"] == "move"]
    assert begun[0]["by"] == "local:root"
    assert "ticket 4711" in thief.admin.run("sterna audit list --vm tern")
    for admin, other in both:
        admin.run(f"sterna host set-role {other.name} admin")
    thief.before = thief.state()


def test_a_program_is_known_by_its_certificate_and_by_no_other(thief):
    own, other = thief.stranger("backup"), thief.stranger("other")
    assert thief.send(b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", own) == b""
    file = own.certificate
    thief.admin.run(f"sterna user create backup --role viewer --client-certificate {file}")
    thief.before = thief.state()
    assert thief.ask("GET", "/v1/vms", own=own)[0] == 200
    assert thief.ask("DELETE", "/v1/vms/tern", own=own) == (403, "access.role")
    assert thief.send(b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", other) == b""
    log_in = {"user": "backup", "password": ""}
    assert thief.ask("POST", "/v1/sessions", log_in) == (401, "access.log-in")
    taken = thief.admin.ask(f"sterna user create twin --role admin --client-certificate {file}")
    assert "is that of backup already" in taken.stderr
    thief.admin.run("sterna user delete backup")
    thief.before = thief.state()
    assert thief.send(b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", own) == b""
    thief.audit("access.role", "access.tls", "access.log-in")


@in_loop
async def test_an_unknown_user_takes_as_long_as_a_known_one(tmp_path):
    """Medians of five each, in turns; each from an address of its own."""
    authority = Authority("alpha", tmp_path, None, Locals())
    wishes = UserWishes(name="alice", role=Role.VIEWER, password=PASSWORD)
    await authority.accounts.create_user(wishes)
    took: dict[str, list[float]] = {"alice": [], "nobody": []}
    for turn in range(5):
        for name, times in took.items():
            began = time.perf_counter()
            with pytest.raises(LogInRefused):
                await authority.log_in(name, "wrong-password-1", f"10.0.{turn}.{len(name)}")
            if turn:  # the first makes the hash of nobody's password
                times.append(time.perf_counter() - began)
    known, unknown = (statistics.median(times) for times in took.values())
    assert 0.5 < known / unknown < 2, took
