"""A move in somebody's name: the target knows her by a ticket that the source got for her.

A real Active Directory (Samba), on the loopback of hv-a: the target asks no KDC.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checking import Administrator, configured, make
from functional import realms
from functional.realms import HERE, REALM, THERE, USER, Domain

pytestmark = pytest.mark.functional
ALICE = f"{USER}@{REALM}"
TREE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(lab_keeper: Any) -> Iterator[Any]:
    yield lab_keeper.lab()
    lab_keeper.clean()


@pytest.fixture(scope="module")
def ad(lab: Any, tmp_path_factory: Any) -> Iterator[Domain]:
    folder = tmp_path_factory.mktemp("ad")
    with (
        realms.domain(folder, lab.hosts[0].netns, is_new=False) as found,
        pytest.MonkeyPatch.context() as patch,
    ):
        for key in ("KRB5_CONFIG", "KRB5CCNAME", "KRB5RCACHEDIR"):
            patch.setenv(key, found.env[key])
        patch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
        patch.delenv("STERNA_TOKEN", raising=False)
        yield found


@contextlib.contextmanager
def taking_tickets(lab: Any, ad: Domain, more: str = "") -> Iterator[None]:
    """Both hosts."""
    with contextlib.ExitStack() as stack:
        for host in lab.hosts:
            keytab = ad.folder / f"{host.name}.keytab"
            table = f'[kerberos]\nkeytab = "{keytab}"\n{more}\n[listen]'
            stack.enter_context(configured(host, ("[listen]", table)))
        yield


def documented() -> list[str]:
    """The commands of the document, one a line."""
    text = (TREE / "docs" / "howto" / "kerberos.md").read_text()
    section = text.partition("## A move in your name\n")[2].partition("\n## ")[0]
    blocks = [block.partition("```")[0] for block in section.split("```sh\n")[1:]]
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.fixture
def web(lab: Any) -> Iterator[None]:
    """A VM on hv-a; nobody is a user of either host afterwards."""
    make(lab.hosts[0], "web")
    yield
    for host in lab.hosts:
        for kind in ("vms", "users"):
            for one in host.client.get(f"/v1/{kind}"):
                host.client.delete(f"/v1/{kind}/{one['name']}")


def test_the_commands_of_the_document_lead_to_a_move_in_her_name(lab, ad, web):
    here, there = lab.hosts
    certificate = here.folder / "state" / "identity" / "certificate.pem"
    url = f"https://{here.address}:7443 --certificate {certificate}"
    with taking_tickets(lab, ad):
        for line in documented():
            where, _, command = line.partition("$ ")
            command = command.replace("EXAMPLE.COM", REALM).replace("example.com", realms.DOMAIN)
            if command.startswith("kinit"):
                ad.log_in()
                continue
            command = command.replace(" --host host-a", f" --host {url}")
            host = there if where == "host-b" else here
            Administrator(host).run(command.replace("host-a", "hv-a").replace("host-b", "hv-b"))
        assert [vm["name"] for vm in there.client.get("/v1/vms")] == ["web"]
        (line,) = [
            one
            for one in there.client.get("/v1/audit", {"limit": 100})
            if one.get("path") == "/v1/peer/reservations" and one.get("who") == USER
        ]
        assert line["via"] == "host:hv-a"


def test_her_role_is_looked_at_again_where_the_vm_goes(lab, ad, web):
    here, there = lab.hosts
    certificate = here.folder / "state" / "identity" / "certificate.pem"
    alice = f"sterna --host https://{here.address}:7443 --certificate {certificate}"
    admin, other = Administrator(here), Administrator(there)

    def move(*, user: bool = True) -> Any:
        return admin.ask(f"{alice if user else 'sterna'} move web {there.name}")

    with taking_tickets(lab, ad, 'delegation = "required"'):
        admin.run(f"sterna user create {USER} --role migrator --kerberos {ALICE}")
        admin.run(f"{alice} login --kerberos --service sterna/{HERE}")
        unknown = move()
        assert f"{there.name} does not know who asks: {ALICE} is no user of it" in unknown.stderr
        other.run(f"sterna user create {USER} --role operator --kerberos {ALICE}")
        low = move()
        assert "needs the role migrator; alice has the role operator" in low.stderr
        other.run(f"sterna user set {USER} --role migrator --tag shop")
        assert (
            "needs the role migrator; alice has the role migrator for VMs tagged" in move().stderr
        )
        other.run(f"sterna user set {USER} --tag none")
        nobody = move(user=False)
        assert "only with the ticket of a user who may move it" in nobody.stderr
        ad.tool("delegation", "del-service", "hv-a$", f"sterna/{THERE}")
        refused = move()
        assert "does not let this host act there for alice" in refused.stderr
        assert f"sterna kerberos check {THERE}" in refused.stderr
        assert [vm["name"] for vm in here.client.get("/v1/vms")] == ["web"]
        assert there.client.get("/v1/vms") == []
        ad.tool("delegation", "add-service", "hv-a$", f"sterna/{THERE}")
        moved = move()
        assert moved.returncode == 0, moved.stderr
    assert [vm["name"] for vm in there.client.get("/v1/vms")] == ["web"]
