"""Several VMs as one operation: moved together, a host emptied for maintenance and filled again."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from checking import Administrator, closed_port, fill, make, restart
from moving import wait_until
from sterna.lab import vm
from sterna.lab.console import GuestConsole

pytestmark = pytest.mark.functional


def here(host):
    return sorted(one["name"] for one in host.client.get("/v1/vms"))


def ask(host, name, order):
    """What the guest itself answers."""
    console = Path(host.client.get(f"/v1/vms/{name}")["console"])

    async def asking():
        async with GuestConsole(console) as guest:
            return await guest.ask(order, timeout_s=60)

    return asyncio.run(asking())


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
    source.client.post("/v1/vms/web3:start")
    line = f"sterna move web1 web2 web3 {target.name}"
    told = admin.run(f"{line} --dry-run", code=3)
    assert f"{target.name} already has a VM called web2" in told
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
    assert target.client.get("/v1/vms/web3")["state"] == "running"
    parts = [one for one in source.client.get("/v1/operations") if one["parent"]]
    assert {one["parent"] for one in parts} >= {last["operation"]}


def began(host, operation, **states):
    """Whether its parts are in these states now."""
    now = host.client.get(f"/v1/operations/{operation['id']}")
    parts = {one["vm"]: one["state"] for one in now["result"].get("vms", ())}
    return {name: parts.get(name) for name in states} == states


def ended(host, operation):
    return host.client.get(f"/v1/operations/{operation['id']}", {"wait": 60}, wait_s=90)


def test_a_vm_that_one_host_does_not_get_is_sent_to_another(make_lab):
    lab = make_lab(hosts=3)
    source, blocked, free = lab.hosts
    admin = Administrator(source)
    line = "--memory 64MiB --disk size=16MiB,pool=local --nic switch=lan --affinity shop"
    admin.run(f"sterna vm create web {line}")
    Administrator(blocked).run(f"sterna vm create db {line}")  # so that web goes there first
    fill(source, "web")
    with closed_port(blocked):  # which is tried only when the move begins
        done = admin.ask("sterna host drain --keep-source --keep-for 1h -o json")
    last, _ = result_of(done)
    assert [(one["vm"], one["state"], one["target"]) for one in last["vms"]] == [
        ("web", "moved", free.name)
    ]
    told = [line["text"] for line in log_of(source, last["operation"])]
    assert any(f"it is sent to {free.name}" in text for text in told), told
    assert here(free) == ["web"]
    (kept,) = json.loads(admin.run("sterna disk kept -o json"))  # the options are of each move
    assert free.name in kept["label"]


def test_limits_of_several_moves_change_together(lab, tmp_path):
    source, target = lab.hosts
    admin = Administrator(source)
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(8 << 20))
    for name in ("a", "b", "c"):
        make(source, name)
        fill(source, name, f"-s {noise} 0 8M")
    line = f"sterna move a b c {target.name} --bandwidth 1MB --detach"
    operation = {"id": admin.run(line).strip()}
    wait_until(lambda: began(source, operation, a="running", b="running"), "two are on their way")
    admin.run(f"sterna op set {operation['id']} --bandwidth none")
    assert ended(source, operation)["state"] == "succeeded"
    assert here(target) == ["a", "b", "c"]
    changed = [
        one["vm"]
        for one in source.client.get("/v1/operations", {"kind": "move"})
        if any("no limit" in line["text"] for line in log_of(source, one["id"]))
    ]
    assert sorted(changed) == ["a", "b", "c"]  # c while it waited for its turn


def log_of(host, operation):
    return host.client.get(f"/v1/operations/{operation}/log")


def test_a_drain_is_cancelled_and_another_outlives_its_daemon_and_goes_on(lab, tmp_path):
    source, target = lab.hosts
    admin = Administrator(source)
    for name in ("a", "b", "c"):
        make(source, name)
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(8 << 20))  # which no carrier makes smaller
    fill(source, "b", f"-s {noise} 0 8M")
    source.client.patch("/v1/host/settings", {"bandwidth": 1 << 20})
    drain = source.client.post("/v1/host/drain")
    wait_until(lambda: began(source, drain, b="running"), "b is on its way")
    source.client.post(f"/v1/operations/{drain['id']}:cancel")
    assert ended(source, drain)["state"] == "cancelled"
    assert began(source, drain, b="cancelled")
    assert "b" in here(source)
    again = source.client.post("/v1/host/drain")
    assert "under way already" in admin.ask("sterna host drain").stderr
    wait_until(lambda: not {"a", "c"} & set(here(source)), "the others have left")
    wait_until(lambda: began(source, again, b="running"), "b is on its way")
    source.kill()
    source.start()
    source.wait_ready()
    now = ended(source, again)
    assert now["state"] in {"partial", "failed"}  # a and c may have left with the first
    assert "b did not: " in now["error"]["title"]
    assert here(source) == ["b"]

    source.client.patch("/v1/host/settings", {"bandwidth": 0})
    assert "this, draining" in admin.run("sterna host list")
    done = admin.ask("sterna vm start b")
    assert done.returncode == 3
    assert "is being emptied (drained) and starts no VM" in done.stderr
    Administrator(target).run(f"sterna host drain {source.name}")
    assert (here(source), here(target)) == ([], ["a", "b", "c"])

    target.client.delete("/v1/vms/c")
    target.client.patch("/v1/host/settings", {"bandwidth": 1 << 20})
    back = source.client.post("/v1/host/resume")
    wait_until(lambda: began(source, back, a="moved", b="running"), "b is on its way back")
    assert began(source, back, c="skipped")  # it is gone
    source.kill()
    source.start()
    source.wait_ready()
    assert "b did not: " in ended(source, back)["error"]["title"]
    assert (here(source), here(target)) == (["a"], ["b"])
    target.client.patch("/v1/host/settings", {"bandwidth": 0})
    assert "1 VM moved" in admin.run("sterna host resume")
    assert (here(source), here(target)) == (["a", "b"], [])
    admin.run("sterna host drain")
    told = admin.run("sterna host resume --no-fail-back")
    assert f"a: skipped, it stays on {target.name}" in told
    assert (here(source), here(target)) == ([], ["a", "b"])
    assert list((source.folder / "state" / "drain").iterdir()) == []
    admin.run(f"sterna --host {target.name} vm start b")


def test_where_a_vm_may_be_is_found_mended_and_the_vm_moves(lab):
    source, target = lab.hosts
    admin = Administrator(source)
    for name in ("web", "shop"):
        make(source, name)
    make(target, "spare")
    admin.run(f"sterna vm set web --allowed-hosts {source.name} --affinity pair --anti-affinity sp")
    admin.run("sterna vm set shop --affinity pair")
    admin.run(f"sterna --host {target.name} vm set spare --anti-affinity sp")
    assert f"allowed hosts: {source.name}" in admin.run("sterna vm show web")
    found = admin.finds("web", target)
    assert set(found) == {"placement.host", "placement.anti-affinity", "placement.affinity"}
    admin.is_refused("web", target, "may be on")
    assert "web may be on" in admin.run("sterna host drain --dry-run", code=3)
    admin.run(found["placement.host"]["command"])
    assert target.name in admin.run(found["placement.anti-affinity"]["command"], code=10)
    admin.run(f"sterna --host {target.name} vm set spare --anti-affinity none")
    assert set(admin.finds("web", target)) == {"placement.affinity"}
    admin.run(admin.finds("web", target)["placement.affinity"]["command"])
    assert here(target) == ["shop", "spare", "web"]
    rules = target.client.get("/v1/vms/web")["spec"]["placement"]
    assert rules["allowed_hosts"] == [source.name, target.name]  # they have travelled


@pytest.mark.long
def test_a_host_is_emptied_but_for_one_that_cannot_leave_and_gets_back_the_others(make_lab):
    lab = make_lab(hosts=3)
    source, second, third = lab.hosts
    admin = Administrator(source)
    source.client.post("/v1/switches", {"name": "attic", "type": "private"})
    running = ("db1", "db2", "web1", "stuck")
    for number, name in enumerate(running):
        source.client.post("/v1/vms", vm.spec(lab.guest(), name, number, memory=128 << 20))
    source.client.patch("/v1/vms/stuck/nics/net0", {"switch": "attic"})
    for name in running:
        source.client.post(f"/v1/vms/{name}:start")
    for name in ("off1", "off2", "off3", "off4"):
        make(source, name)
    admin.run("sterna vm set db1 --anti-affinity db --priority 90")
    admin.run("sterna vm set db2 --anti-affinity db --priority 80")
    admin.run(f"sterna vm set off1 --allowed-hosts {source.name},{third.name}")
    boots = {name: ask(source, name, "status")["boot_id"] for name in ("db1", "db2", "web1")}
    assert "attic" in admin.run("sterna host drain --dry-run", code=3)
    assert not source.client.get("/v1/host")["settings"]["draining"]

    done = admin.ask("sterna host drain -o json")
    assert done.returncode == 11, (done.stdout, done.stderr)
    last, lines = result_of(done)
    (plan,) = [line for line in lines if line["type"] == "plan"]
    assert [one["vm"] for one in plan["vms"]][:2] == ["db1", "db2"]
    states = {one["vm"]: one["state"] for one in last["vms"]}
    assert states.pop("stuck") == "refused"
    assert set(states.values()) == {"moved"}
    assert len(states) == 7
    assert "attic" in last["error"]["title"]
    assert here(source) == ["stuck"]
    assert ("db1" in here(second)) != ("db2" in here(second))
    assert "off1" in here(third)
    assert sorted(here(second) + here(third)) == sorted(states)

    restart(source)
    found = admin.finds("stuck", second)  # it is as it was
    assert "network.switch-missing" in found
    back = Administrator(second if here(second) else third)
    traveller = here(back.host)[0]
    found = back.finds(traveller, source)
    assert [one for one in found if found[one]["severity"] == "blocker"] == ["host.draining"]
    refused = back.ask(f"sterna move {traveller} {source.name}")
    assert refused.returncode == 3
    assert found["host.draining"]["command"] == f"sterna --host {source.name} host resume"

    told = back.run(found["host.draining"]["command"], code=10)  # db1 and db2 are together again
    assert "7 VMs moved" in told
    assert here(source) == sorted([*states, "stuck"])
    assert here(second) == here(third) == []
    assert boots == {name: ask(source, name, "status")["boot_id"] for name in boots}
    assert not source.client.get("/v1/host")["settings"]["draining"]
    assert admin.run("sterna host resume") == "there was nothing to move\n"
