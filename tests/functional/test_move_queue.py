"""Moves beyond the limit of source or target wait for their turn; settings hold, and outlive a daemon."""

from __future__ import annotations

import pytest

from checking import Administrator, fill, make, restart
from moving import wait_until
from sterna.errors import BadSpec

pytestmark = pytest.mark.functional

SLOW = 64 << 10  # bytes/s: such a move is under way for as long as it is needed
ORDINARY = {
    "inbound": True,
    "outbound": True,
    "live_moves": 2,
    "storage_moves": 2,
    "bandwidth": 0,
    "migration_networks": [],
    "carrier": "auto",
    "max_downtime_ms": 300,
    "encryption": "required",
}


@pytest.fixture
def pair(lab):
    yield lab.hosts
    for host in lab.hosts:
        host.client.patch("/v1/host/settings", ORDINARY)


def operation(host, one):
    return host.client.get(f"/v1/operations/{one['id']}")


def waits(host, one):
    now = operation(host, one)
    return now["progress"].get("waits", "") if now["state"] == "running" else ""


def run(host, *names):
    for name in names:
        make(host, name)
        if name == "a":
            fill(host, name)
        host.client.post(f"/v1/vms/{name}:start")


def move(host, name, target, **wishes):
    return host.client.post(
        f"/v1/vms/{name}/moves", {"target": target.name, "carrier": "direct", **wishes}
    )


def cancel(host, one):
    host.client.post(f"/v1/operations/{one['id']}:cancel")
    wait_until(lambda: operation(host, one)["state"] == "cancelled", "it is cancelled")


def test_moves_wait_in_order_for_their_source_and_can_be_cancelled(pair):
    here, there = pair
    here.client.patch("/v1/host/settings", {"live_moves": 1})
    run(here, "a", "b", "c")
    first = move(here, "a", there, bandwidth=SLOW)
    second, third = move(here, "b", there), move(here, "c", there)
    said = f"waits: 1 move is under way on {here.name}, place"
    wait_until(lambda: waits(here, second) == f"{said} 1", "the second is first in the queue")
    wait_until(lambda: waits(here, third) == f"{said} 2", "the third comes after it")
    report = Administrator(here).check("b", there)
    (found,) = [one for one in report["findings"] if one["id"] == "host.slots"]
    assert found["severity"] == "info"
    assert f"1 of at most 1 live moves from {here.name} are under way" in found["finding"]
    cancel(here, second)
    wait_until(lambda: waits(here, third) == f"{said} 1", "the third has moved up")
    assert operation(here, first)["state"] == "running"
    restart(here)
    wait_until(lambda: operation(here, third)["state"] == "failed", "who waited is told so")
    assert here.client.get("/v1/host")["settings"]["live_moves"] == 1
    assert [one["state"] for one in here.client.get("/v1/vms")] == ["running"] * 3
    wait_until(lambda: operation(here, first)["state"] == "failed", "the first was taken back")
    first, third = move(here, "a", there, bandwidth=SLOW), move(here, "c", there)
    wait_until(lambda: waits(here, third) == f"{said} 1", "it waits again")
    cancel(here, first)
    wait_until(lambda: operation(here, third)["state"] == "succeeded", "its turn has come")


def test_a_target_keeps_to_its_own_limit(pair):
    here, there = pair
    there.client.patch("/v1/host/settings", {"live_moves": 1})
    run(here, "a", "b", "c")
    first = move(here, "a", there, bandwidth=SLOW)
    wait_until(lambda: operation(here, first)["phase"] == "disks", "the first is under way")
    second = move(here, "b", there)
    said = f"waits: 1 move is under way to {there.name}, place 1"
    wait_until(lambda: waits(here, second) == said, "the target is busy")
    admin = Administrator(here)
    report = admin.check("c", there)
    (found,) = report["findings"]
    assert (found["id"], report["outcome"]) == ("host.slots", "well")
    assert f"1 of at most 1 live moves to {there.name} are under way" in found["finding"]
    admin.run(found["command"])
    wait_until(lambda: operation(here, second)["state"] == "succeeded", "the limit was raised")
    cancel(here, first)


def test_who_waits_for_a_busy_target_does_not_hold_back_moves_to_another(make_lab):
    here, busy, free = make_lab(hosts=3).hosts
    here.client.patch("/v1/host/settings", {"live_moves": 1})
    busy.client.patch("/v1/host/settings", {"live_moves": 1})
    run(free, "a")
    run(here, "b", "c")
    first = move(free, "a", busy, bandwidth=SLOW)
    wait_until(lambda: operation(free, first)["phase"] == "disks", "the target is busy")
    second = move(here, "b", busy)
    said = f"waits: 1 move is under way to {busy.name}, place 1"
    wait_until(lambda: waits(here, second) == said, "the second waits for it")
    third = move(here, "c", free)
    wait_until(lambda: operation(here, third)["state"] == "succeeded", "the third goes ahead")
    assert waits(here, second) == said
    cancel(free, first)
    wait_until(lambda: operation(here, second)["state"] == "succeeded", "its turn has come")


@pytest.mark.parametrize("identity", ["host.inbound", "host.outbound"])
def test_who_takes_or_lets_go_none_is_found_mended_and_the_vm_moves(pair, identity):
    here, there = pair
    admin, way = Administrator(here), identity.removeprefix("host.")
    make(here)
    (there if way == "inbound" else here).client.patch("/v1/host/settings", {way: False})
    found = admin.finds("tern", there)
    assert list(found) == [identity]
    admin.is_refused("tern", there, "moves are off")
    assert f"{way} on" in admin.run(found[identity]["command"])
    admin.moves("tern", there)


def test_nonsense_is_refused_in_one_sentence(pair):
    (here, _) = pair
    with pytest.raises(BadSpec, match="live_moves is 0; it must be between 1 and 64"):
        here.client.patch("/v1/host/settings", {"live_moves": 0})
    assert here.client.get("/v1/host")["settings"] == ORDINARY | {"draining": False}
