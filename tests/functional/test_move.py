"""Moves between two hosts of the lab: real QEMU, a real guest, and what its users see."""

from __future__ import annotations

import time

import pytest

from moving import Load, traveller, wait_until
from sterna.errors import Conflict, SternaError
from sterna.lab.links import Network

pytestmark = pytest.mark.functional

SLOW = "100mbit"  # 256 MiB take 20 s: time to look and to cancel


def test_a_running_vm_goes_there_and_back_and_its_users_see_a_short_pause(lab):
    a, b = lab.hosts
    with traveller(lab) as guest:
        for source, target in ((a, b), (b, a)):
            began = time.time_ns()
            done = guest.ended(source, guest.move(source, target))
            assert done["state"] == "succeeded", done["error"]
            report = done["result"]
            assert (report["from"], report["to"], report["live"]) == (
                source.name,
                target.name,
                True,
            )
            assert report["bytes_wire"] > 10 << 20
            assert report["rounds"] >= 1
            assert set(report["pause_parts_ms"]) >= {"last_copy", "ownership", "continue"}
            assert guest.witness.felt(began).felt_ms < 5000
            guest.must_run_once_on(target)


def test_a_vm_with_a_disk_on_shared_storage_keeps_every_block_it_was_promised(lab):
    a, b = lab.hosts
    with traveller(lab, Load(memory_mb_s=10, memory_mb=32, disk_blocks_s=200)) as guest:
        assert guest.ended(a, guest.move(a, b))["state"] == "succeeded"
        guest.must_run_once_on(b)
        assert guest.ended(b, guest.move(b, a))["state"] == "succeeded"
        guest.must_run_once_on(a)
        guest.must_have_its_disk(a)


def test_a_paused_vm_moves_and_stays_paused(lab):
    a, b = lab.hosts
    with traveller(lab) as guest:
        a.client.post("/v1/vms/tern:pause")
        assert guest.ended(a, guest.move(a, b))["state"] == "succeeded"
        assert b.client.get("/v1/vms/tern")["state"] == "paused"
        b.client.post("/v1/vms/tern:resume")
        guest.must_run_once_on(b)


def test_a_vm_that_is_off_moves_cold_and_boots_there(lab):
    a, b = lab.hosts
    with traveller(lab, Load(disk_blocks_s=50)) as guest:
        guest.power_off(a)
        done = guest.ended(a, guest.move(a, b))
        assert done["state"] == "succeeded"
        assert done["result"]["live"] is False
        assert a.client.get("/v1/vms") == []
        assert b.client.get("/v1/vms/tern")["state"] == "off"
        began = time.time_ns()
        b.client.post("/v1/vms/tern:start")
        guest.witness.wait_beat(began)


def test_both_hosts_tell_the_same_story_under_the_same_id(lab):
    a, b = lab.hosts
    with traveller(lab) as guest:
        move = guest.ended(a, guest.move(a, b))
        receive = guest.ended(b, move)
        assert (move["kind"], receive["kind"]) == ("move", "receive")
        assert (move["peer"], receive["peer"]) == ("hv-b", "hv-a")
        assert receive["state"] == "succeeded"
        assert [step["name"] for step in move["steps"]] == ["reserve", "memory", "handover", "tidy"]
        assert all(step["state"] == "done" and step["text"] for step in move["steps"])
        log = a.client.get(f"/v1/operations/{move['id']}/log")
        assert any("runs on hv-b now" in line["text"] for line in log)
        samples = a.client.get(f"/v1/operations/{move['id']}/samples")
        assert samples[-1]["transferred"] > 0


def test_a_cancelled_move_leaves_the_vm_where_it_was_and_nothing_elsewhere(lab):
    a, b = lab.hosts
    lab.shape(Network.MIGRATION, SLOW)
    with traveller(lab) as guest:
        operation = guest.move(a, b)
        wait_until(lambda: guest.phase_of(a, operation) == "memory", "the memory travels")
        assert a.client.get("/v1/vms/tern")["operation"] == operation["id"]
        a.client.post(f"/v1/operations/{operation['id']}:cancel")
        done = guest.ended(a, operation)
        assert done["state"] == "cancelled"
        assert done["error"]["code"] == "move.cancelled"
        guest.must_run_once_on(a)
        lab.shape(Network.MIGRATION, None)
        assert guest.ended(a, guest.move(a, b))["state"] == "succeeded"
        guest.must_run_once_on(b)


def test_a_second_move_of_a_moving_vm_is_refused(lab):
    a, b = lab.hosts
    lab.shape(Network.MIGRATION, SLOW)
    with traveller(lab) as guest:
        operation = guest.move(a, b)
        with pytest.raises(Conflict) as caught:
            guest.move(a, b)
        assert caught.value.code == "vm.busy"
        assert operation["id"] in caught.value.advice
        a.client.post(f"/v1/operations/{operation['id']}:cancel")
        assert guest.ended(a, operation)["state"] == "cancelled"


def test_a_deadline_that_passes_undoes_the_move(lab):
    a, b = lab.hosts
    lab.shape(Network.MIGRATION, SLOW)
    with traveller(lab) as guest:
        done = guest.ended(a, guest.move(a, b, deadline_s=1.0))
        assert done["state"] == "failed"
        assert "within 1 s" in done["error"]["title"]
        guest.must_run_once_on(a)


@pytest.fixture
def resting(lab):
    """A VM of hv-a that is off: enough for a move to be refused."""
    client = lab.hosts[0].client
    client.post("/v1/vms", {"name": "tern", "nics": [{"name": "net0", "switch": "lan"}]})
    return client


def refusal(client, target: str) -> SternaError:
    with pytest.raises(SternaError) as caught:
        client.post("/v1/vms/tern/moves", {"target": target})
    vm = client.get("/v1/vms/tern")
    assert vm["state"] == "off"
    assert client.get("/v1/operations", {"vm": vm["id"]}) == []
    return caught.value


def test_a_host_that_nobody_knows_is_named_with_those_that_are_known(resting):
    error = refusal(resting, "hv-z")
    assert error.code == "host.unknown"
    assert "hv-b" in error.advice
    assert error.exit_code == 4


def test_a_host_that_does_not_answer_refuses_the_move_before_it_begins(lab, resting):
    lab["hv-b"].stop()
    error = refusal(resting, "hv-b")
    assert "hv-b does not answer" in error.message
    assert error.exit_code == 6


def test_a_switch_that_the_target_lacks_refuses_the_move_with_the_fix(lab, resting):
    target = lab["hv-b"].client
    target.delete("/v1/switches/lan")
    try:
        error = refusal(resting, "hv-b")
    finally:
        target.post("/v1/switches", {"name": "lan", "uplink": "data0"})
    assert error.exit_code == 3
    (finding,) = error.facts["findings"]
    assert finding["id"] == "network.switch-missing"
    assert "sterna --host hv-b switch create lan" in finding["fix"]


def test_a_name_that_the_target_has_already_refuses_the_move_and_leaves_both(lab, resting):
    target = lab["hv-b"].client
    target.post("/v1/vms", {"name": "tern", "memory": "64MiB"})
    error = refusal(resting, "hv-b")
    assert "hv-b already has a VM called tern" in error.message
    assert error.facts["findings"][0]["id"] == "vm.exists"
    assert resting.get("/v1/vms/tern")["spec"]["memory"] == 512 << 20
    assert target.get("/v1/vms/tern")["spec"]["memory"] == 64 << 20


def test_a_move_to_the_host_where_it_is_refuses_kindly(resting):
    assert "is on hv-a already" in refusal(resting, "hv-a").message
