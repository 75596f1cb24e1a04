"""A guest is saved, and goes on: the same boot, its memory and its disks; damage is found and named."""

from __future__ import annotations

import time

import pytest
from checkpoint_crashing import POINTS
from points import LOAD, Points, dies_at

from moving import traveller
from sterna.errors import Conflict, SavedStateDamaged

pytestmark = pytest.mark.functional

SAVE = [point for point in POINTS if point.startswith("save")]
RESTORE = [point for point in POINTS if point.startswith("restore")]


def restart(host) -> None:
    host.kill()
    host.start()
    host.wait_ready()


def test_a_saved_guest_goes_on_and_one_whose_state_is_damaged_is_found_and_boots(lab):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        vm.do(":save")
        view = vm.view()
        assert (view["state"], view["process"]) == ("off", None)
        assert view["saved"]["volume"] in vm.files()
        restart(host)
        assert vm.view()["saved"] == view["saved"]
        host.client.post(f"{vm.vm}:start")
        assert vm.view()["saved"] is None
        vm.must_be_well()
        assert len(vm.files()) == 2
        vm.must_have_no_work_left()
        with pytest.raises(Conflict):
            vm.do(":discard")

        vm.create("one", memory=False)
        vm.do(":save")
        file = host.folder / "pool" / vm.view()["saved"]["volume"]
        with file.open("r+b") as state:
            state.seek(file.stat().st_size // 2)
            state.write(b"\xa5\x5a")
        with pytest.raises(SavedStateDamaged) as caught:
            host.client.post(f"{vm.vm}:start")
        assert str(file) in caught.value.message
        assert "sterna vm discard tern" in caught.value.advice
        assert vm.do(":restore", "failed")["error"]["code"] == "saved.damaged"
        assert vm.view()["state"] == "off"
        host.client.post(f"{vm.vm}:discard")
        assert not file.exists()
        began = time.time_ns()
        host.client.post(f"{vm.vm}:start")
        assert guest.witness.wait_beat(began).boot_id != guest.boot


@pytest.mark.long
def test_a_checkpoint_of_a_saved_guest_has_its_memory_and_goes_back_there(lab):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        vm.do(":save")
        vm.create("asleep")
        vm.do(":restore")
        vm.must_be_well()
        vm.apply("asleep", force=True, keep="awake")
        assert vm.names() == ["asleep", "awake"]
        vm.must_be_well()
        vm.apply("awake", force=True)
        vm.must_be_well()
        vm.delete("asleep", subtree=True)
        assert len(vm.files()) == 2
        vm.must_be_well()
        vm.must_have_no_work_left()
        vm.must_have_every_block()


@pytest.mark.long
@pytest.mark.parametrize("point", SAVE)
def test_a_daemon_that_dies_while_it_saves_leaves_a_guest_that_runs_or_is_saved(
    lab, monkeypatch, point
):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        ended = dies_at(host, monkeypatch, point, f"{vm.vm}:save")
        if point == "save-recorded":
            assert ended["state"] == "succeeded", ended
            assert vm.view()["saved"]
            host.client.post(f"{vm.vm}:start")
        else:
            assert ended["error"]["code"] == "saved.failed"
        vm.must_be_well()
        assert len(vm.files()) == 2
        vm.must_have_no_work_left()
        vm.must_have_every_block()


@pytest.mark.long
@pytest.mark.parametrize("point", RESTORE)
def test_a_daemon_that_dies_while_it_restores_leaves_a_guest_that_runs_or_is_saved(
    lab, monkeypatch, point
):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        vm.do(":save")
        ended = dies_at(host, monkeypatch, point, f"{vm.vm}:restore")
        if point == "restore-recorded":
            assert ended["state"] == "succeeded", ended
        else:
            assert ended["error"]["code"] == "saved.not-restored"
            assert vm.view()["state"] == "off"
            host.client.post(f"{vm.vm}:start")
        vm.must_be_well()
        assert len(vm.files()) == 2
        vm.must_have_no_work_left()
        vm.must_have_every_block()
