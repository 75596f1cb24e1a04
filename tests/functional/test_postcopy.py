"""Post-copy: guests that never converge, and what becomes of them when something breaks then."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from moving import Load, Traveller, traveller, wait_until
from sterna.lab import demo, netns, processes
from sterna.lab.hosts import GRACE_S, LOCAL_POOL, Host
from sterna.lab.links import Network
from sterna.lab.processes import Process
from sterna.qemu.sockets import cut_connections

pytestmark = [pytest.mark.functional, pytest.mark.timeout(300)]
LONG = pytest.mark.long  # a minute each: make postcopy runs them all

# All of it, again and again, faster than any link here; noise, which a relay cannot make smaller.
BUSY = {
    "direct": Load(memory_mb_s=400, memory_mb=150),
    "compression": Load(memory_mb_s=100, memory_mb=60, pattern="random"),
}
BOTH = pytest.mark.parametrize("carrier", [*BUSY])
SELDOM_DIRECT = pytest.mark.parametrize(
    "carrier", [pytest.param("direct", marks=LONG), "compression"]
)
SLOW = "100mbit"  # the rest takes more than ten seconds: time to break something


@pytest.fixture
def slow(lab):
    lab.shape(Network.MIGRATION, SLOW)
    return lab


def begin(guest: Traveller, a: Host, b: Host, carrier: str = "direct") -> dict[str, object]:
    """A move that is in post-copy when this returns: the guest runs on `b`."""
    operation = guest.move(a, b, on_stall="postcopy", carrier=carrier)
    wait_until(lambda: guest.phase_of(a, operation) == "postcopy", "post-copy", 120)
    return operation


def qemu_of(guest: Traveller, host: Host) -> int:
    (pid,) = demo.qemus(host.netns, guest.name)
    return pid


@SELDOM_DIRECT
def test_a_guest_that_never_converges_goes_on_elsewhere_and_its_memory_follows(slow, carrier):
    a, b = slow.hosts
    with traveller(slow, BUSY[carrier]) as guest:
        began = time.time_ns()
        operation = begin(guest, a, b, carrier)
        assert b.client.get("/v1/vms/tern")["state"] == "running"
        done = guest.ended(a, operation)
        assert done["state"] == "succeeded", done
        assert done["result"]["carrier"] == carrier
        felt = guest.witness.felt(began)
        print(done["result"], felt)
        assert [step["name"] for step in done["steps"]] == [
            "reserve",
            "memory",
            "handover",
            "postcopy",
            "tidy",
        ]
        assert guest.ended(b, operation)["state"] == "succeeded"
        guest.must_run_once_on(b)
        slow.shape(Network.MIGRATION, None)
        back = guest.ended(b, guest.move(b, a, max_downtime_ms=2000))
        assert back["state"] == "succeeded", back
        guest.must_run_once_on(a)


@LONG
@BOTH
def test_disks_that_travel_are_there_before_the_memory_that_follows(slow, carrier):
    a, b = slow.hosts
    load = replace(BUSY[carrier], disk_blocks_s=200, pool=LOCAL_POOL, formats=("qcow2",))
    with traveller(slow, load) as guest:
        operation = begin(guest, a, b, carrier)
        assert guest.ended(a, operation)["state"] == "succeeded"
        guest.must_run_once_on(b)
        guest.must_have_disks(b, {"vda": b.folder / "pool" / "tern-vda.qcow2"})


@LONG
@BOTH
def test_a_link_that_is_cut_for_ten_seconds_ends_nothing(slow, carrier):
    a, b = slow.hosts
    with traveller(slow, BUSY[carrier]) as guest:
        operation = begin(guest, a, b, carrier)
        slow.cut(a.name, Network.MIGRATION)
        slow.cut(a.name, Network.MANAGEMENT)
        time.sleep(10)  # the fault, not a wait
        slow.restore(a.name, Network.MIGRATION)
        slow.restore(a.name, Network.MANAGEMENT)
        done = guest.ended(a, operation)
        log = a.client.get(f"/v1/operations/{operation['id']}/log")
        assert done["state"] == "succeeded", (done["progress"], log)
        guest.must_run_once_on(b)


@LONG
def test_a_link_of_relays_that_is_cut_for_longer_than_their_hosts_wait_ends_nothing(slow):
    a, b = slow.hosts
    with traveller(slow, BUSY["compression"]) as guest:
        operation = begin(guest, a, b, "compression")
        slow.cut(a.name, Network.MIGRATION)
        time.sleep(2 * GRACE_S)  # the fault, not a wait
        slow.restore(a.name, Network.MIGRATION)
        assert guest.ended(a, operation)["state"] == "succeeded"
        guest.must_run_once_on(b)


@pytest.mark.parametrize("side", ["source", pytest.param("target", marks=LONG)])
def test_a_relay_that_ends_is_done_without(slow, side):
    a, b = slow.hosts
    with traveller(slow, BUSY["compression"]) as guest:
        operation = begin(guest, a, b, "compression")
        (relay,) = relays(a if side == "source" else b)
        assert relay.signal(signal.SIGKILL)
        wait_until(partial(is_logged, a, operation, "made anew", 1), "a new connection")
        assert guest.ended(a, operation)["state"] == "succeeded"
        guest.must_run_once_on(b)


@LONG
def test_a_connection_that_breaks_is_made_anew_as_often_as_it_takes(slow):
    a, b = slow.hosts
    with traveller(slow, BUSY["direct"]) as guest:
        operation = begin(guest, a, b)
        for number in range(2):
            mended = partial(is_logged, a, operation, "made anew", number + 1)
            assert cut_connections(qemu_of(guest, a))
            wait_until(mended, "a new connection")
        assert guest.ended(a, operation)["state"] == "succeeded"
        guest.must_run_once_on(b)


@pytest.mark.parametrize(
    "side", [pytest.param("source", marks=LONG), pytest.param("target", marks=LONG), "both"]
)
@SELDOM_DIRECT
def test_daemons_that_die_are_followed_by_ones_that_take_it_up(slow, side, carrier):
    a, b = slow.hosts
    victims = {"source": [a], "target": [b], "both": [a, b]}[side]
    with traveller(slow, BUSY[carrier]) as guest:
        operation = begin(guest, a, b, carrier)
        for host in victims:
            host.kill()
        for host in victims:
            host.start()
            host.wait_ready()
        assert guest.ended(a, operation)["state"] == "succeeded"
        guest.must_run_once_on(b)
        assert guest.ended(b, operation)["state"] == "succeeded"
        for host in (a, b):
            wait_until(partial(has_no_relay, host), "its relay has ended")


@LONG
@BOTH
def test_a_daemon_that_is_stopped_leaves_it_to_the_next_one(slow, carrier):
    a, b = slow.hosts
    with traveller(slow, BUSY[carrier]) as guest:
        operation = begin(guest, a, b, carrier)
        a.stop()
        a.start()
        a.wait_ready()
        assert guest.ended(a, operation)["state"] == "succeeded"
        guest.must_run_once_on(b)


@pytest.mark.parametrize("side", ["source", pytest.param("target", marks=LONG)])
def test_memory_that_is_lost_leaves_the_vm_off_on_the_target_and_it_boots_from_its_disks(
    slow, side
):
    a, b = slow.hosts
    with traveller(slow, BUSY["direct"]) as guest:
        operation = begin(guest, a, b)
        os.kill(qemu_of(guest, a if side == "source" else b), signal.SIGKILL)
        done = guest.ended(a, operation)
        assert done["state"] == "partial"
        assert done["error"]["code"] == "move.memory-lost"
        wait_until(lambda: b.client.get("/v1/vms/tern")["state"] == "off", "it is off")
        assert a.client.get("/v1/vms") == []
        assert guest.ended(b, operation)["state"] == "partial"
        assert demo.qemus(a.netns, guest.name) == []
        began = time.time_ns()
        b.client.post("/v1/vms/tern:start")
        guest.witness.wait_beat(began)


@LONG
def test_a_user_may_give_up_what_never_comes(slow):
    a, b = slow.hosts
    with traveller(slow, BUSY["direct"]) as guest:
        operation = begin(guest, a, b)
        a.kill()
        os.kill(qemu_of(guest, a), signal.SIGKILL)
        stopped = b.client.post("/v1/vms/tern:stop", {"force": True})
        assert guest.ended(b, stopped)["state"] == "succeeded"
        assert b.client.get("/v1/vms/tern")["state"] == "off"
        a.start()
        a.wait_ready()
        assert guest.ended(a, operation)["state"] == "partial"
        assert a.client.get("/v1/vms") == []


def relays(host: Host) -> list[Process]:
    inside = netns.inode(host.netns)
    assert inside is not None
    return [
        process
        for process in processes.in_namespaces({inside})
        if b"sterna.carrier.relay" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    ]


def has_no_relay(host: Host) -> bool:
    return relays(host) == []


def is_logged(host: Host, operation: dict[str, object], words: str, times: int) -> bool:
    log = host.client.get(f"/v1/operations/{operation['id']}/log")
    return sum(words in line["text"] for line in log) >= times
