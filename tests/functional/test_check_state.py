"""A VM whose own state speaks against a move: found by its check, mended as it says, and moved."""

from __future__ import annotations

import os
import signal
import time

import pytest

from checking import Administrator, configured, make, odd, restart, small
from moving import wait_until
from sterna.lab import vm
from sterna.lab.vm import Load

pytestmark = pytest.mark.functional


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


def stop(host):
    operation = host.client.post("/v1/vms/tern:stop", {"force": True})
    host.client.get(f"/v1/operations/{operation['id']}", {"wait": 20})


def test_a_guest_that_stands_still_since_its_pool_is_full(lab, admin, tmp_path):
    here, there = lab.hosts
    with small(tmp_path / "fast", "size=24m") as folder:
        restart(here, there)
        for host in (here, there):
            pool = {"name": "fast", "path": str(folder), "shared": True}
            host.client.post("/v1/pools", pool)
        load = Load(disk_blocks_s=4000, disk_mb=64, pool="fast")
        here.client.post("/v1/vms", vm.spec(lab.guest(), "tern", load=load))
        here.client.post("/v1/vms/tern:start")
        wait_until(lambda: here.client.get("/v1/vms/tern")["state"] == "paused", "its pool is full")
        found = admin.finds("tern", there)
        assert list(found) == ["vm.io-error"]
        os.system(f"mount -o remount,size=200m {folder}")
        wait_until(lambda: _resumed(admin, found["vm.io-error"]["command"], here), "it goes on")
        assert admin.finds("tern", there) == {}
        admin.moves("tern", there)
        stop(there)
        there.client.delete("/v1/vms/tern")
        for host in (here, there):
            host.client.delete("/v1/pools/fast")
    restart(here, there)


def _resumed(admin, command, host):
    admin.run(command)
    time.sleep(0.5)
    return host.client.get("/v1/vms/tern")["state"] == "running"


def test_a_saved_state_that_is_damaged(lab, admin):
    here, there = lab.hosts
    here.client.post("/v1/vms", vm.spec(lab.guest(), "tern", load=Load(disk_blocks_s=1)))
    here.client.post("/v1/vms/tern:start")
    operation = here.client.post("/v1/vms/tern:save")
    here.client.get(f"/v1/operations/{operation['id']}", {"wait": 30})
    saved = here.client.get("/v1/vms/tern")["saved"]
    assert admin.finds("tern", there) == {}
    (file,) = lab.folder.rglob(saved["volume"])
    with file.open("r+b") as state:
        state.truncate(1000)
    found = admin.finds("tern", there)
    assert list(found) == ["disk.state-damaged"]
    assert str(file) in found["disk.state-damaged"]["finding"]
    admin.is_refused("tern", there, "damaged")
    assert found["disk.state-damaged"]["fix"].endswith("sterna vm discard tern")
    admin.run("sterna vm discard tern --yes")
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_device_that_qemu_cannot_move(lab, admin, tmp_path):
    """Found by QEMU itself; tried all the same, the move fails and says the same."""
    here, there = lab.hosts
    (tmp_path / "files").mkdir()
    blocker = f"driver=vvfat,node-name=fat,dir={tmp_path}/files,rw=on"
    arguments = f'[qemu]\narguments = ["-blockdev", "{blocker}"]'
    make(here)
    with configured(here, ("[qemu]", arguments)):
        here.client.post("/v1/vms/tern:start")
        found = admin.finds("tern", there)
        assert list(found) == ["vm.qemu-blocks"]
        assert "vvfat" in found["vm.qemu-blocks"]["finding"]
        admin.is_refused("tern", there, "vvfat")
        admin.run(found["vm.qemu-blocks"]["command"] + " --force")
    with configured(here, ("[qemu]", arguments)), odd(here, blind=["vm.qemu-blocks"]):
        here.client.post("/v1/vms/tern:start")
        tried = admin.ask(f"sterna move tern {there.name}")
        assert tried.returncode == 1
        assert "vvfat" in tried.stderr
        admin.run(found["vm.qemu-blocks"]["command"] + " --force")
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_qemu_that_does_not_answer(lab, admin):
    here, there = lab.hosts
    make(here)
    here.client.post("/v1/vms/tern:start")
    pid = here.client.get("/v1/vms/tern")["process"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        restart(here)
        found = admin.finds("tern", there)
        assert "vm.state" in found
        assert "unknown" in found["vm.state"]["finding"]
    finally:
        os.kill(pid, signal.SIGCONT)
    restart(here)
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)
