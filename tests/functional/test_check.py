"""`sterna check` as a whole: no false alarm, quick, and what it says of a move is what a move does."""

from __future__ import annotations

import time

import pytest

from checking import Administrator
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
