"""Hosts that do not trust each other, or will not soon: the check says which, and the fix mends it."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest

from checking import Administrator, configured, make, restart
from sterna.lab.hosts import Host
from sterna.security import identity

pytestmark = pytest.mark.functional


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


def known(host: Host):
    """What its identity is made of."""
    return host.folder / "state" / "identity"


def give_new(host: Host, *, address: str | None = None) -> None:
    """As the fix says: its identity is moved away, and its daemon makes a new one."""
    shutil.rmtree(known(host))
    identity.ensure(known(host), host.name, host.address if address is None else address)


@pytest.fixture
def pair(lab):
    """Both hosts; with new identities afterwards. Who knows whom is read from these very files."""
    yield lab.hosts
    for host in lab.hosts:
        give_new(host)
    restart(*lab.hosts)


def test_a_certificate_that_has_ended_and_one_that_soon_will(pair, admin, monkeypatch):
    here, there = pair
    make(here)
    for days, found_id in ((0, "trust.certificate-expired"), (10, "trust.certificate-ends")):
        monkeypatch.setattr(identity, "LIFETIME", timedelta(days=days, minutes=30))
        give_new(there)
        restart(there, here)
        found = admin.finds("tern", there)
        assert list(found) == [found_id]
        assert there.name in found[found_id]["finding"]
        assert f"{there.name}" in found[found_id]["fix"]
        monkeypatch.undo()
    give_new(there)
    restart(there, here)
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_host_that_shows_another_certificate_than_is_known(pair, admin, tmp_path):
    here, there = pair
    make(here)
    old = tmp_path / "old.pem"
    shutil.copy(known(there) / "certificate.pem", old)
    with configured(here, (str(known(there) / "certificate.pem"), str(old))):
        assert admin.finds("tern", there) == {}
        give_new(there)
        restart(there)
        found = admin.finds("tern", there)
        assert list(found) == ["trust.certificate-other"]
        new = Administrator(there).run("sterna host certificate")
        old.write_text(new)
        restart(here)
        assert admin.finds("tern", there) == {}
        admin.moves("tern", there)


def test_a_certificate_without_the_address_that_is_asked(pair, admin):
    here, there = pair
    make(here)
    give_new(there, address="192.0.2.77")
    restart(there, here)
    found = admin.finds("tern", there)
    assert list(found) == ["trust.name"]
    assert there.address in found["trust.name"]["finding"]
    give_new(there)
    restart(there, here)
    admin.moves("tern", there)


def test_a_token_that_is_not_the_targets(pair, admin, tmp_path):
    here, there = pair
    make(here)
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef-another")
    shared = str(here.folder.parent / "token")
    with configured(there, (shared, str(token))):
        assert list(admin.finds("tern", there)) == ["trust.token"]
        shutil.copy(shared, token)
        restart(there)
        assert admin.finds("tern", there) == {}
        admin.moves("tern", there)
