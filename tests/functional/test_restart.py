"""The daemon stops, dies and comes back: guests never notice, and damage stays where it is."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from moving import Load, traveller, wait_until
from sterna.errors import SternaError
from sterna.lab import demo
from sterna.lab.hosts import Host

pytestmark = pytest.mark.functional


def restart(host: Host, *, kill: bool) -> None:
    host.kill() if kill else host.stop()
    host.start()
    host.wait_ready()


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_daemon_that_comes_back_manages_its_vms_again_and_they_felt_nothing(lab, kill):
    host = lab.hosts[0]
    with traveller(lab, Load(memory_mb_s=5, memory_mb=16)) as guest:
        pids = demo.qemus(host.netns, "tern")
        began = time.time_ns()
        restart(host, kill=kill)
        assert demo.qemus(host.netns, "tern") == pids
        felt = guest.witness.felt(began)
        assert felt.boots == (guest.boot,)
        host.client.post("/v1/vms/tern:pause")
        restart(host, kill=kill)
        assert host.client.get("/v1/vms/tern")["state"] == "paused"
        host.client.post("/v1/vms/tern:resume")
        guest.must_run_once_on(host)
        guest.power_off(host)


def test_a_guest_that_shut_down_while_nobody_watched_is_found_off(lab):
    host = lab.hosts[0]
    with traveller(lab) as guest:
        console = host.client.get("/v1/vms/tern")["console"]
        host.kill()
        guest.order_power_off(console)
        wait_until(lambda: demo.qemus(host.netns, "tern") == [], "its QEMU has ended")
        host.start()
        host.wait_ready()
        assert host.client.get("/v1/vms/tern")["state"] == "off"
        assert host.client.get("/v1/vms/tern")["process"] is None


def test_a_damaged_record_is_set_aside_and_reported_and_hides_no_other_vm(lab):
    host = lab.hosts[0]
    for name in ("well", "hurt"):
        host.client.post("/v1/vms", {"name": name, "memory": "64MiB"})
    record = host.folder / "state" / "vms" / f"{host.client.get('/v1/vms/hurt')['id']}.json"
    whole = record.read_text()
    host.stop()
    record.write_text(whole[: len(whole) // 2])
    host.start()
    host.wait_ready()
    states = {view["name"]: view["state"] for view in host.client.get("/v1/vms")}
    assert states == {"well": "off", record.stem: "damaged"}
    (problem,) = host.client.get("/v1/host")["problems"]
    assert record.stem in problem
    with pytest.raises(SternaError) as caught:
        host.client.get(f"/v1/vms/{record.stem}")
    assert caught.value.code == "vm.damaged"
    host.client.post("/v1/vms/well:start")
    assert host.client.get("/v1/vms/well")["state"] == "running"

    (aside,) = record.parent.glob("*.damaged-*")  # mended as the error says: put it back
    aside.unlink()
    record.write_text(whole)
    restart(host, kill=False)
    states = {view["name"]: view["state"] for view in host.client.get("/v1/vms")}
    assert states == {"well": "running", "hurt": "off"}


def test_a_damaged_journal_is_set_aside_and_vms_are_as_before(lab):
    host = lab.hosts[0]
    with traveller(lab) as guest:
        host.kill()
        journal = host.folder / "state" / "journal.db"
        for extra in journal.parent.glob("journal.db-*"):
            extra.unlink()
        journal.write_bytes(b"not a journal" * 1000)
        host.start()
        host.wait_ready()
        assert any("journal" in problem for problem in host.client.get("/v1/host")["problems"])
        guest.must_run_once_on(host)
        guest.power_off(host)
    for aside in journal.parent.glob("journal.db.damaged-*"):
        aside.unlink()
    restart(host, kill=False)
    assert host.client.get("/v1/host")["problems"] == []


def test_a_second_daemon_with_the_same_state_folder_refuses_to_start(lab):
    host = lab.hosts[0]
    argv = host.command([sys.executable, "-m", "sterna.daemon", "--config", str(host.config)])
    again = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert again.returncode != 0
    assert "another sternad already runs" in again.stderr
    assert host.client.get("/v1")["name"] == host.name


def test_what_the_records_of_a_host_say_can_be_read_by_an_administrator(lab):
    host = lab.hosts[0]
    host.client.post("/v1/vms", {"name": "tern", "memory": "64MiB"})
    view = host.client.get("/v1/vms/tern")
    record = json.loads((host.folder / "state" / "vms" / f"{view['id']}.json").read_text())
    assert record["spec"]["name"] == "tern"
    assert record["ownership"]["state"] == "owned"
