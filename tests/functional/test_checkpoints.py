"""Checkpoints of a guest that works: made live, gone back to, merged while it writes."""

from __future__ import annotations

import time

import pytest
from checkpoint_crashing import POINTS
from points import LOAD, Points, dies_at

from moving import traveller, wait_until
from sterna.errors import Conflict, NotFound, Refused
from sterna.lab.hosts import LOCAL_POOL

pytestmark = pytest.mark.functional

BASES = {"tern-vda.qcow2", "tern-vdb.raw"}
CREATE = [point for point in POINTS if point.startswith("create")]
MERGE = [point for point in POINTS if point.startswith("merge")]
QUICK = {"merge-recorded"}


def points(names: list[str]) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in names]


def test_a_live_checkpoint_brings_memory_and_disks_back_and_branches_merge_under_the_guest(
    lab, record_property
):
    host = lab.hosts[0]
    with traveller(lab, LOAD) as guest:
        vm = Points(guest, host)
        began = time.time_ns()
        made = vm.create("one")
        record_property("felt_ms", guest.witness.felt(began).felt_ms)
        record_property("pause_ms", made["result"]["pause_ms"])
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
