"""Moves that checks forbid, tried all the same: each fails or hurts as the check said."""

from __future__ import annotations

import subprocess

import pytest

from checking import Administrator, make, odd
from sterna.lab.hosts import LOCAL_POOL

pytestmark = [pytest.mark.functional, pytest.mark.long]  # make checks

BLIND = [
    *("host.outbound", "network.switch-broken", "storage.cd-missing", "storage.pool-broken"),
    "storage.snapshots-lost",
    *("pool.unusable", "switch.unusable"),  # as the target tells them
]


@pytest.fixture
def blind(lab):
    """Both hosts pass over those; who asks the first of them for a move."""
    here, there = lab.hosts
    with odd(here, blind=BLIND), odd(there, blind=BLIND):
        yield Administrator(here)


def fails(admin, there, *words: str, options: str = "") -> None:
    """The move does not succeed, says why, and the VM is where it was."""
    done = admin.ask(f"sterna move tern {there.name} {options}")
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr
    assert [vm["name"] for vm in admin.host.client.get("/v1/vms")] == ["tern"]
    assert there.client.get("/v1/vms") == []


def found(admin, there, options: str = "") -> set[str]:
    return {
        key
        for key, one in admin.finds("tern", there, options).items()
        if one["severity"] == "blocker"
    }


def test_a_pool_that_does_not_work(lab, blind, tmp_path):
    here, there = lab.hosts
    for host in lab.hosts:
        host.client.post("/v1/pools", {"name": "fast", "path": str(tmp_path / host.name)})
    make(here, pool="fast")
    (tmp_path / there.name).rename(tmp_path / "aside")
    assert found(blind, there) == {"storage.pool-broken"}
    fails(blind, there, "fast")
    (tmp_path / "aside").rename(tmp_path / there.name)
    here.client.delete("/v1/vms/tern")
    for host in lab.hosts:
        host.client.delete("/v1/pools/fast")


def test_a_cd_that_is_gone(lab, blind):
    here, there = lab.hosts
    iso = here.folder / "pool" / "a.iso"
    iso.write_bytes(b"a" * 2048)
    make(here, cds=[{"name": "cd0", "pool": LOCAL_POOL, "volume": "a.iso"}])
    iso.unlink()
    assert found(blind, there) == {"storage.cd-missing"}
    blind.moves("tern", there)
    refused = blind.ask(f"sterna --host {there.name} vm start tern")
    assert refused.returncode != 0
    assert "a.iso" in refused.stderr


def test_a_host_that_sends_nothing(lab, blind):
    here, there = lab.hosts
    make(here)
    here.client.patch("/v1/host/settings", {"outbound": False})
    assert found(blind, there) == {"host.outbound"}
    blind.moves("tern", there)  # it leaves, although its host was told to let none go
    here.client.patch("/v1/host/settings", {"outbound": True})


def test_a_switch_that_does_not_work(lab, blind):
    here, there = lab.hosts
    make(here)
    subprocess.run(there.command(["ip", "link", "set", "data0", "name", "data9"]), check=True)
    try:
        assert found(blind, there) == {"network.switch-broken"}
        blind.moves("tern", there)
        refused = blind.ask(f"sterna --host {there.name} vm start tern")
        assert refused.returncode != 0
        assert "data0" in refused.stderr
    finally:
        subprocess.run(there.command(["ip", "link", "set", "data9", "name", "data0"]), check=True)


def test_snapshots_that_another_format_cannot_hold(lab, blind):
    here, there = lab.hosts
    make(here)
    image = str(here.folder / "pool" / "tern-vda.qcow2")
    subprocess.run(["qemu-img", "snapshot", "-c", "before", image], check=True)
    here.client.post("/v1/vms/tern:start")
    options = f"--disk vda={LOCAL_POOL}:raw"
    assert found(blind, there, options) == {"storage.snapshots-lost"}
    blind.moves("tern", there, options)
    there_now = there.folder / "pool" / "tern-vda.raw"
    told = subprocess.run(
        ["qemu-img", "snapshot", "-U", "-l", "-f", "raw", there_now],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "before" not in told.stdout  # lost
