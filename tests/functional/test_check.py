"""`sterna check` as a whole: no false alarm, quick, and what it says of a move is what a move does."""

from __future__ import annotations

import json
import os
import time

import pytest

from checking import REFUSED, Administrator, make, restart
from sterna.lab import vm
from sterna.lab.vm import Load

pytestmark = pytest.mark.functional


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


def test_a_good_pair_of_hosts_gives_no_finding_within_two_seconds(lab, admin):
    here, there = lab.hosts
    spec = vm.spec(lab.guest(), "tern", load=Load(memory_mb_s=5, memory_mb=16, disk_blocks_s=20))
    here.client.post("/v1/vms", spec)
    here.client.post("/v1/vms/tern:start")
    began = time.monotonic()
    report = admin.check("tern", there)
    assert time.monotonic() - began < 2
    assert report["findings"] == []
    assert report["outcome"] == "well"
    assert [(place["disk"], place["travels"]) for place in report["places"]] == [("vda", False)]
    assert report["carrier"]
    assert admin.run(f"sterna check tern {there.name}").endswith("nothing in its way\n")
    admin.moves("tern", there)


def test_what_is_found_is_mended_by_its_command_and_the_move_goes(lab, admin):
    here, there = lab.hosts
    there.client.delete("/v1/switches/lan")
    try:
        here.client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "nics": [
            {"name": "net0", "switch": "lan"}]})  # fmt: skip
        (found,) = admin.check("tern", there)["findings"]
        assert (found["id"], found["severity"]) == ("network.switch-missing", "blocker")
        assert "lan" in found["finding"]
        assert there.name in found["finding"]
        admin.is_refused("tern", there, "network.switch-missing")
        admin.run(found["command"])
        assert admin.check("tern", there)["findings"] == []
        admin.moves("tern", there)
    finally:
        there.client.delete("/v1/vms/tern")
        there.client.delete("/v1/switches/lan")
        there.client.post("/v1/switches", {"name": "lan", "uplink": "data0"})


def test_a_plan_is_edited_checked_again_and_done_as_approved(lab, admin, tmp_path):
    here, there = lab.hosts
    make(here)
    report = admin.check("tern", there)
    assert report["wishes"]["disks"] == {"vda": {"pool": "local", "format": None}}
    report["wishes"]["disks"]["vda"]["pool"] = "shared"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(report))
    edited = admin.ask(f"sterna move --plan {plan}")
    assert edited.returncode == REFUSED  # nobody has approved what that means
    assert "target.pool.shared" in edited.stderr
    plan.write_text(admin.run(f"sterna check --plan {plan} -o json"))
    admin.run(f"sterna move --plan {plan}")
    (disk,) = there.client.get("/v1/vms/tern")["spec"]["disks"]
    assert disk["pool"] == "shared"


def test_a_plan_whose_facts_have_changed_is_refused_with_the_difference(lab, admin, tmp_path):
    here, there = lab.hosts
    make(here)
    plan = tmp_path / "plan.json"
    plan.write_text(admin.run(f"sterna check tern {there.name} -o json"))
    there.client.delete("/v1/switches/lan")
    try:
        there.client.post("/v1/switches", {"name": "lan"})
        refused = admin.ask(f"sterna move --plan {plan}")
        assert refused.returncode == REFUSED
        assert "target.switch.lan was uplink data0" in refused.stderr
        assert "no uplink" in refused.stderr
        assert [vm["state"] for vm in here.client.get("/v1/vms")] == ["off"]
    finally:
        there.client.delete("/v1/switches/lan")
        there.client.post("/v1/switches", {"name": "lan", "uplink": "data0"})
    admin.run(f"sterna move --plan {plan}")
    assert there.client.get("/v1/vms/tern")["state"] == "off"


def test_a_vm_that_is_busy_is_waited_for_by_the_safe_fix(lab, admin):
    here, there = lab.hosts
    disk = {"name": "vda", "pool": "local", "size": "64MiB", "format": "raw"}
    here.client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "disks": [disk]})
    image = here.folder / "pool" / "tern-vda.raw"
    with image.open("r+b") as file:
        file.write(os.urandom(48 << 20))
    limit = {"target": there.name, "bandwidth": "12MB"}
    operation = here.client.post("/v1/vms/tern/moves", limit)
    found = admin.finds("tern", there)["vm.busy"]
    assert found["command"] == f"sterna op wait {operation['id']}"
    here.client.post(f"/v1/operations/{operation['id']}:cancel")
    done = admin.ask(f"sterna check tern {there.name} --fix")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"tern can move to {there.name}: nothing in its way\n")
    admin.moves("tern", there)


def test_fifty_hosts_are_surveyed_within_ten_seconds(lab, admin):
    """One daemon answers for all of them, under fifty names that are not its own."""
    here, there = lab.hosts
    make(here)
    names = [f"hv-{n:02}" for n in range(50)]
    folder = here.folder / "state" / "peers"
    record = json.loads((folder / f"{there.name}.json").read_text())
    here.stop()
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(record | {"name": name}))
    restart(here)
    try:
        began = time.monotonic()
        done = admin.ask("sterna check tern -o json")
        took = time.monotonic() - began
        reports = json.loads(done.stdout)
        assert done.returncode == 0  # hv-b itself is well
        assert {one["target"] for one in reports} == {*names, there.name}
        assert reports[0]["target"] == there.name
        others = {finding["id"] for one in reports[1:] for finding in one["findings"]}
        assert others == {"host.name"}
        assert took < 10
    finally:
        here.stop()
        for name in names:
            (folder / f"{name}.json").unlink()
        restart(here)
