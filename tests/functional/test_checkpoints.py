"""Checkpoints of a guest that works: made live, gone back to, merged while it writes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pytest
from checkpoint_crashing import POINTS
from points import LOAD, Points, dies_at

from moving import traveller, wait_until
from sterna.errors import Conflict, NotFound, Refused
from sterna.lab import demo
from sterna.lab.hosts import LOCAL_POOL

pytestmark = pytest.mark.functional

BASES = {"tern-vda.qcow2", "tern-vdb.raw"}
CREATE = [point for point in POINTS if point.startswith("create")]
MERGE = [point for point in POINTS if point.startswith("merge")]
QUICK = {"merge-recorded"}


def points(names: list[str]) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in names]


def test_a_live_checkpoint_brings_memory_and_disks_back_and_branches_merge_under_the_guest(lab):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        began = time.time_ns()
        made = vm.create("one")
        felt = guest.witness.felt(began).felt_ms
        print(f"felt pause {felt:.0f} ms, of which {made['result']['pause_ms']} ms stopped")
        then = vm.durable()
        assert vm.view()["at"] == "one"
        vm.must_be_well()
        vm.create("two", memory=False)
        wait_until(lambda: min(vm.durable().values()) > max(then.values()) + 200, "it writes on")
        later = vm.durable()

        with pytest.raises(Conflict):
            vm.apply("one")
        vm.apply("one", force=True)
        assert all(now < later[disk] for disk, now in vm.durable().items())
        vm.must_be_well()  # the same boot: its memory came back

        vm.create("three", memory=False)
        rows = {row["name"]: row for row in host.client.get(f"{vm.vm}/checkpoints")}
        assert {name: row["parent"] for name, row in rows.items()} == {
            "one": "",
            "two": "one",
            "three": "one",
        }
        assert [name for name, row in rows.items() if row["is_current"]] == ["three"]

        assert vm.delete("one")["result"]["waiting"] == ["one"]  # two branches rest on it
        assert vm.delete("two")["result"]["images_merged"] == 2  # now only one does
        assert vm.names() == ["three"]
        vm.must_be_well()
        vm.delete("three")
        assert vm.files() == BASES
        vm.must_be_well()
        vm.must_have_no_work_left()
        vm.must_have_every_block()


def test_checkpoints_of_a_vm_that_is_off_branch_and_merge_too(lab):
    client = lab.hosts[0].client
    disks = [
        {"name": "vda", "pool": LOCAL_POOL, "size": "16MiB", "format": "raw"},
        {"name": "cd", "pool": LOCAL_POOL, "size": "1MiB", "format": "raw", "read_only": True},
    ]
    client.post("/v1/vms", {"name": "tern", "disks": disks})

    class Quiet:
        name = "tern"

        def ended(self, host, operation):
            path = f"/v1/operations/{operation['id']}"
            return host.client.get(path, {"wait": 60}, wait_s=90)

    vm = Points(Quiet(), lab.hosts[0])
    with pytest.raises(Refused):
        vm.create("one", memory=True)
    for name in ("one", "two", "three"):
        vm.create(name)
    with pytest.raises(Conflict):
        vm.create("one")
    vm.apply("one", keep="four")
    assert vm.names() == ["one", "two", "three", "four"]
    vm.create("five")
    row = client.post(f"{vm.vm}/checkpoints/five:rename", {"name": "cinq"})
    assert (row["name"], row["parent"]) == ("cinq", "one")
    with pytest.raises(NotFound):
        client.post(f"{vm.vm}/checkpoints/five:rename", {"name": "six"})
    vm.delete("two", subtree=True)
    assert vm.names() == ["one", "cinq"]
    vm.delete("one")
    vm.delete("cinq")
    assert vm.files() == {"tern-vda.raw", "tern-cd.raw"}
    vm.must_have_no_work_left()


@pytest.mark.parametrize("point", points(CREATE))
def test_a_daemon_that_dies_while_it_makes_a_checkpoint_leaves_a_guest_that_is_well(
    lab, monkeypatch, point
):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        ended = dies_at(host, monkeypatch, point, f"{vm.vm}/checkpoints", name="one")
        if point == "create-files-named":
            assert ended["error"]["code"] == "checkpoint.failed"
            assert vm.files() == BASES
        else:
            assert ended["error"]["code"] == "checkpoint.without-memory"
            assert vm.names() == ["one"]
            assert len(vm.files()) == 4
        vm.must_be_well()
        vm.create("again")  # its QEMU is as any other
        vm.must_be_well()
        vm.must_have_no_work_left()
        vm.must_have_every_block()


@pytest.mark.parametrize("point", points(MERGE))
def test_a_daemon_that_dies_while_images_are_merged_goes_on_merging(lab, monkeypatch, point):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        vm.create("one", memory=False)
        ended = dies_at(host, monkeypatch, point, f"{vm.vm}/checkpoints/one", method="delete")
        assert ended["state"] == "succeeded", ended
        assert vm.names() == []
        assert vm.files() == BASES
        vm.must_be_well()
        vm.must_have_no_work_left()
        vm.must_have_every_block()


@pytest.mark.long
def test_a_vm_moves_with_its_checkpoints_and_goes_back_on_the_other_host(lab):
    a, b = lab.hosts
    with traveller(lab, LOAD) as guest:
        here, there = Points(guest, a), Points(guest, b)
        here.create("one")
        here.create("two", memory=False)
        moved = guest.ended(a, guest.move(a, b))
        assert moved["state"] == "succeeded", moved["error"]
        assert here.files() == set()
        assert there.names() == ["one", "two"]
        there.must_be_well()
        there.apply("one", force=True, keep="three")
        there.must_be_well()
        there.do(":save")
        moved = guest.ended(b, guest.move(b, a))  # saved: it goes as files
        assert moved["state"] == "succeeded", moved["error"]
        assert there.files() == set()
        a.client.post(f"{here.vm}:start")
        here.must_be_well()
        here.delete("one", subtree=True)
        assert here.files() == BASES
        here.must_be_well()
        here.must_have_every_block()


@pytest.mark.long
def test_a_checkpoint_that_is_cancelled_at_any_moment_leaves_all_as_it_was(lab):
    host = lab.hosts[0]
    chance = random.Random(4)
    ends = []
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        for _ in range(12):
            began = host.client.post(f"{vm.vm}/checkpoints", {"name": "one"})
            time.sleep(chance.uniform(0, 1.2))
            with contextlib.suppress(Conflict):  # it had ended, or was at its last lines
                host.client.post(f"/v1/operations/{began['id']}:cancel")
            ended = guest.ended(host, began)
            ends.append(ended["state"])
            if ended["state"] == "succeeded":
                vm.delete("one")
            else:
                assert ended["state"] == "cancelled", ended
            assert vm.names() == []
            assert vm.files() == BASES
        assert "cancelled" in ends
        vm.must_be_well()
        vm.must_have_no_work_left()
        vm.must_have_every_block()


@pytest.mark.long
def test_a_qemu_that_dies_while_its_memory_is_written_is_off_and_nothing_is_left(lab):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        began = host.client.post(f"{vm.vm}/checkpoints", {"name": "one"})
        wait_until(lambda: guest.phase_of(host, began) == "memory", "its memory is written")
        for pid in demo.qemus(host.netns, guest.name):
            os.kill(pid, signal.SIGKILL)
        ended = guest.ended(host, began)
        assert ended["error"]["code"] == "checkpoint.failed", ended
        assert vm.view()["state"] == "off"
        assert vm.files() == BASES
        vm.must_have_no_work_left()
