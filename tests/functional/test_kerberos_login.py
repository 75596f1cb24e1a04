"""People who are proven by Kerberos tickets: a real KDC, real keytabs, a real daemon over HTTPS.

Users get their tickets on loopback, where the KDC is, and show them in the network of a lab.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attacker import PORT, Attacker

from checking import SCRIPT, Administrator, configured, make
from functional import realms
from functional.realms import HERE, KDC, PASSWORD, THERE, USER
from sterna.kerberos import negotiate, tickets
from sterna.security import identity

pytestmark = pytest.mark.functional
SERVICE, WEB = f"sterna/{HERE}", f"HTTP/{HERE}"
ALICE = f"{USER}@MIT.TEST"


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KDC]:
    with realms.kdc(tmp_path_factory.mktemp("mit")) as found:
        found.admin(f"addprinc -pw {PASSWORD} bob")
        for name in (WEB, f"host/{HERE}"):
            found.admin(f"addprinc -randkey {name}")
            found.admin(f"ktadd -k {found.keytab} {name}")
        yield found


@pytest.fixture
def env(realm: KDC, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """This process, and the daemons that it starts, belong to the realm."""
    for key in ("KRB5_CONFIG", "KRB5CCNAME", "KRB5RCACHEDIR"):
        monkeypatch.setenv(key, realm.env[key])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("STERNA_TOKEN", raising=False)
    realm.log_in()
    holds(realm, SERVICE)
    yield


def holds(realm: KDC, *services: str) -> None:
    """The user has tickets for these, and needs no KDC any more."""
    done = realm.run("kvno", *services)
    assert done.returncode == 0, done.stderr


class Person(Attacker):
    """Somebody with tickets in the network of the lab."""

    def certificate(self) -> bytes:
        pem = (self.victim.folder / "state" / "identity" / "certificate.pem").read_text()
        return ssl.PEM_cert_to_DER_cert(pem)

    def asking(self, service: str = SERVICE, certificate: bytes = b"") -> negotiate.Asking:
        return negotiate.Asking(service, certificate or self.certificate())

    def shows(
        self, token: bytes | str, method: str = "GET", path: str = "/v1/me", **headers: str
    ) -> tuple[int, str, Any]:
        text = negotiate.header(token) if isinstance(token, bytes) else token
        return self.exchange(method, path, None, headers={"Authorization": text, **headers})

    def sterna(self, line: str) -> Any:
        url = f"https://{self.victim.address}:{PORT}"
        pinned = self.victim.folder / "state" / "identity" / "certificate.pem"
        assert SCRIPT.exists()
        host = Administrator(self.peer)
        return host.ask(f"sterna --host {url} --certificate {pinned} {line}")

    def audit(self) -> list[dict[str, Any]]:
        return list(self.victim.client.get("/v1/audit", {"limit": 500}))


def with_tickets(lab: Any, realm: KDC, tmp_path: Path, more: str = "") -> Any:
    table = f'[kerberos]\nkeytab = "{realm.keytab}"\n{more}\n[listen]'
    return configured(lab.hosts[0], ("[listen]", table))


@pytest.fixture
def alice(lab: Any, realm: KDC, env: None, tmp_path: Path) -> Iterator[Person]:
    """She is a viewer; the host takes tickets that are bound."""
    with with_tickets(lab, realm, tmp_path):
        one = Person(lab, tmp_path)
        wishes = {"name": USER, "role": "viewer", "kerberos": ALICE}
        one.victim.client.post("/v1/users", wishes)
        one.before = one.state()
        yield one
        one.has_changed_nothing()
        one.victim.client.delete(f"/v1/users/{USER}")


def test_a_user_with_a_ticket_needs_no_token_and_has_her_role(lab, realm, env, tmp_path):
    here = lab.hosts[0]
    admin = Administrator(here)
    make(here)
    with with_tickets(lab, realm, tmp_path):
        person = Person(lab, tmp_path)
        unknown = person.sterna(f"login --kerberos --service {SERVICE}")
        assert f"{ALICE} is no user of it" in unknown.stderr
        mend = unknown.stderr.partition("sterna user create")[2].splitlines()[0]
        mend = mend.replace("NAME", USER, 1).replace("ROLE", "viewer", 1)
        admin.run(f"sterna user create {mend}")
        assert f"tickets of {ALICE}" in admin.run("sterna user list")
        taken = admin.ask(f"sterna user create eve --role admin --kerberos {ALICE}")
        assert (taken.returncode, f"prove {USER} already" in taken.stderr) == (4, True)
        done = person.sterna(f"login --kerberos --service {SERVICE}")
        assert done.stdout.startswith(f"{USER} with the role viewer on {here.name}"), done.stderr
        assert "tern" in person.sterna("vm list").stdout
        refused = person.sterna("vm start tern")
        assert "needs the role operator" in refused.stderr
        admin.run(f"sterna user set {USER} --role operator")
        assert person.sterna("vm delete tern --yes --reason 'not needed'").returncode == 0
        (line,) = [one for one in person.audit() if one.get("reason") == "not needed"]
        assert (line["who"], line["from"]) == (USER, person.peer.address)
        admin.run(f"sterna user set {USER} --kerberos none")
        assert "is no user of it" in person.sterna("vm list").stderr
        realm.run("kdestroy")
        without = person.sterna("vm list")
        assert "you have none of your own" in without.stderr
        assert "Get one: kinit" in without.stderr
        address = person.sterna("login --kerberos")
        assert "Name its service: --service sterna/HOST" in address.stderr
        here.client.delete(f"/v1/users/{USER}")


def test_what_a_ticket_is_worth(alice: Person, realm: KDC) -> None:
    """Once, on one connection, for one service; the host proves itself in return."""
    asking = alice.asking()
    status, head, me = alice.shows(asking.token)
    assert (status, me["who"], me["role"]) == (200, USER, "viewer")
    reply = next(
        line.partition(": ")[2]
        for line in head.split("\r\n")
        if line.lower().startswith("www-authenticate: negotiate")
    )
    asking.prove(reply)
    with pytest.raises(tickets.Refusal):
        alice.asking().prove(reply)  # that was for another request
    again = alice.shows(asking.token)
    assert (again[0], "was shown before" in str(again[2])) == (401, True), again
    other = identity.ensure(alice.folder / "other", "hv-a", "")
    elsewhere = alice.asking(certificate=ssl.PEM_cert_to_DER_cert(other.pem))
    relayed = alice.shows(elsewhere.token)  # somebody between, with a certificate of its own
    assert (relayed[0], "bound to another connection" in str(relayed[2])) == (401, True), relayed
    holds(realm, f"host/{HERE}")
    borrowed = alice.shows(alice.asking(f"host/{HERE}").token)
    assert (borrowed[0], f"for host/{HERE}" in str(borrowed[2])) == (401, True), borrowed
    holds(realm, f"sterna/{THERE}")
    foreign = alice.shows(alice.asking(f"sterna/{THERE}").token)
    assert (foreign[0], "no key that opens" in str(foreign[2])) == (401, True), foreign
    for nonsense in (b"", b"NTLMSSP\0\1\0\0\0", os.urandom(300), b"x" * (25 << 10)):
        assert alice.shows(nonsense)[0] in (401, 400, 431)
    assert alice.shows("Negotiate ***")[0] == 401
    both = alice.shows(alice.asking().token, Cookie="__Host-sterna=planted")
    assert (both[0], both[2]["who"]) == (200, USER)  # what is said explicitly counts alone
    challenge = alice.exchange("GET", "/v1/me")[1].lower()
    assert "www-authenticate: negotiate" in challenge
    assert "www-authenticate: bearer" in challenge


def test_a_browser_sends_tickets_by_itself_and_another_page_cannot_use_that(
    lab, realm, env, tmp_path
):
    """Browsers here bind to nothing: an administrator may take that."""
    import gssapi  # noqa: PLC0415 - an extra

    def unbound() -> bytes:
        context = gssapi.SecurityContext(
            name=tickets.named(WEB), usage="initiate", creds=tickets.mine().credential
        )
        return bytes(context.step())

    holds(realm, WEB)
    wishes = {"name": USER, "role": "admin", "kerberos": ALICE}
    with with_tickets(lab, realm, tmp_path):
        person = Person(lab, tmp_path)
        person.victim.client.post("/v1/users", wishes)
        strict = person.shows(unbound())
        assert (strict[0], "bound to no connection" in str(strict[2])) == (401, True), strict
    with with_tickets(lab, realm, tmp_path, 'channel_binding = "offered"'):
        assert person.shows(unbound())[0] == 200
        forged = person.shows(unbound(), "POST", "/v1/host:drain")
        assert (forged[0], forged[2]["code"]) == (403, "access.csrf")
        mine = person.shows(unbound(), "GET", "/v1/users", **{"X-CSRF-Token": "page"})
        assert mine[0] == 200
        wrong = identity.ensure(tmp_path / "other", "hv-a", "")
        bound = person.asking(WEB, ssl.PEM_cert_to_DER_cert(wrong.pem))
        assert person.shows(bound.token)[0] == 401  # who binds is held to it
        person.victim.client.delete(f"/v1/users/{USER}")


def test_keys_that_changed_and_a_host_without_a_keytab(alice: Person, realm: KDC) -> None:
    kept = realm.keytab.read_bytes()
    try:
        realm.admin(f"ktadd -k {realm.folder / 'newer'} {SERVICE}")  # the keytab is of before now
        realm.log_in()
        holds(realm, SERVICE)
        stale = alice.shows(alice.asking().token)
        assert (stale[0], "no key that opens" in str(stale[2])) == (401, True), stale
        realm.keytab.write_bytes((realm.folder / "newer").read_bytes())
        assert alice.shows(alice.asking().token)[0] == 200  # read anew, without a restart
        realm.keytab.unlink()
        none = alice.shows(alice.asking().token)
        assert (none[0], "keytab cannot be read" in str(none[2])) == (401, True), none
    finally:
        realm.keytab.write_bytes(kept)
        realm.admin(f"ktadd -k {realm.keytab} {SERVICE}")
    refused = [one for one in alice.audit() if one.get("code") == "access.not-proven"]
    assert any("keytab cannot be read" in one.get("text", "") for one in refused)
