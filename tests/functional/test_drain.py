"""Several VMs as one operation: moved together, a host emptied for maintenance and filled again."""

from __future__ import annotations

import json

import pytest

from checking import Administrator, make

pytestmark = pytest.mark.functional


def here(host):
    return sorted(one["name"] for one in host.client.get("/v1/vms"))


def result_of(done):
    """The last line of `-o json`, and the others by their type."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["type"] == "result", done.stderr
    return lines[-1], lines


def test_several_vms_move_as_one_operation_and_one_that_cannot_stops_no_other(lab):
    source, target = lab.hosts
    admin = Administrator(source)
    for name in ("web1", "web2", "web3"):
        make(source, name)
    make(target, "web2")  # its name is taken there
    line = f"sterna move web1 web2 web3 {target.name}"
    told = admin.run(f"{line} --dry-run", code=3)
    assert f"{target.name} has a VM called web2" in told or "web2" in told
    assert here(source) == ["web1", "web2", "web3"]
    done = admin.ask(f"{line} -o json")
    assert done.returncode == 11, (done.stdout, done.stderr)
    last, _ = result_of(done)
    assert {one["vm"]: one["state"] for one in last["vms"]} == {
        "web1": "moved",
        "web2": "refused",
        "web3": "moved",
    }
    assert here(source) == ["web2"]
    assert here(target) == ["web1", "web2", "web3"]
    parts = [one for one in source.client.get("/v1/operations") if one["parent"]]
    assert {one["parent"] for one in parts} >= {last["operation"]}
    print(told, done.stdout, done.stderr)
