"""Hosts that do not trust each other, or will not soon: the check says which, and the fix mends it."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta

import pytest

from checking import Administrator, make, restart
from sterna.lab.hosts import Host
from sterna.security import identity

pytestmark = pytest.mark.functional


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


@pytest.fixture
def pair(lab):
    """Both hosts; they trust each other afterwards, whatever became of them."""
    yield lab.hosts
    here, there = lab.hosts
    for one, other in ((here, there), (there, here)):
        Administrator(one).ask(f"sterna host distrust {other.name}")
    give_new(there)
    restart(there)
    here.pair(there)


def give_new(host: Host) -> None:
    """A new identity, of which nobody knows."""
    folder = host.folder / "state" / "identity"
    shutil.rmtree(folder)
    identity.ensure(folder, host.name, host.address)


def tell(here: Host, there: Host) -> None:
    """Let one know what the other shows, as if it had always been so."""
    record = here.folder / "state" / "peers" / f"{there.name}.json"
    certificate = there.folder / "state" / "identity" / "certificate.pem"
    record.write_text(
        json.dumps(json.loads(record.read_text()) | {"certificate": certificate.read_text()})
    )


def test_a_certificate_that_has_ended_and_one_that_soon_will(pair, admin, monkeypatch):
    here, there = pair
    make(here)
    for days, found_id in ((0, "trust.certificate-expired"), (10, "trust.certificate-ends")):
        monkeypatch.setattr(identity, "LIFETIME", timedelta(days=days, minutes=30))
        give_new(there)
        tell(here, there)
        restart(there, here)
        found = admin.finds("tern", there)
        assert list(found) == [found_id]
        assert there.name in found[found_id]["finding"]
        assert f"{there.name}" in found[found_id]["fix"]
        monkeypatch.undo()
    assert "sterna host rotate" in found[found_id]["fix"]
    assert admin.run("sterna host list").count("its certificate ends in 9 days") == 1
    Administrator(there).run("sterna host rotate")
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_host_that_shows_another_certificate_than_is_known(pair, admin):
    here, there = pair
    make(here)
    assert admin.finds("tern", there) == {}
    give_new(there)
    restart(there)
    found = admin.finds("tern", there)
    assert list(found) == ["trust.certificate-other"]
    token = json.loads(Administrator(there).run("sterna host invite -o json"))["token"]
    assert (
        f"knows another host called {there.name}" in admin.ask(f"sterna host join {token}").stderr
    )
    admin.run(f"sterna host distrust {there.name}")
    admin.run(f"sterna host join {token}")
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_host_that_is_not_trusted_in_return(pair, admin):
    here, there = pair
    make(here)
    other = Administrator(there)
    other.run(f"sterna host distrust {here.name}")
    found = admin.finds("tern", there)
    assert list(found) == ["trust.not-mutual"]
    token = json.loads(admin.run("sterna host invite -o json"))["token"]
    other.run(f"sterna host join {token}")
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)
