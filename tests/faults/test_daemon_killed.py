"""Daemons that die in mid-move: at every line that matters, and at any moment.

After each: the VM runs exactly once with its memory whole, the operation says what happened, and
nothing is left on the other host.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from pathlib import Path

import pytest
from crashing import POINTS

from moving import Load, Traveller, traveller, wait_until
from sterna.errors import SternaError
from sterna.lab import hosts as lab_hosts
from sterna.lab.hosts import Host
from sterna.lab.links import Network

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

CRASHING = Path(__file__).with_name("crashing.py")
LOAD = Load(memory_mb_s=20, memory_mb=64)
TIMES = 20
# Where the VM must be when the source knows, or can ask, what its target durably wrote.
STAYS = {
    "source-before-reserve",
    "source-after-reserve",
    "source-before-last-copy",
    "source-after-last-copy-began",
    "source-before-yielding",
    "target-after-reserved",
    "target-before-process-known",
    "target-after-launch",
    "target-before-owned",
}
QUICK = {  # those that the table has no cell for
    "target-before-process-known",
    "target-after-owned",
}
TABLE = [pytest.param(point, marks=[] if point in QUICK else pytest.mark.long) for point in POINTS]


def revive(host: Host) -> None:
    """Wait until its daemon is dead, then start a whole one."""
    wait_until(lambda: host.process is None, f"the daemon of {host.name} is dead")
    host.start()
    host.wait_ready()


def settled(guest: Traveller, source: Host, target: Host) -> tuple[Host, dict[str, object]]:
    """Where the VM is when all is over, and what the source's operation says. They must agree."""
    operation = guest.move_ended(source)
    assert operation["state"] in ("succeeded", "failed"), operation
    owner = target if operation["state"] == "succeeded" else source
    other = source if owner is target else target
    wait_until(
        lambda: (
            [vm["state"] for vm in owner.client.get("/v1/vms")] == ["running"]
            and other.client.get("/v1/vms") == []
        ),
        f"the VM is on {owner.name} only, as {operation['state']} says",
    )
    guest.must_run_once_on(owner)
    if operation["state"] == "failed":
        assert operation["error"]["title"]
        assert operation["error"]["hint"]
    return owner, operation


@pytest.mark.parametrize("point", TABLE)
def test_a_daemon_that_dies_at_this_line_leaves_one_vm_and_the_truth(lab, monkeypatch, point):
    source, target = lab.hosts
    victim = source if point.startswith("source") else target
    with traveller(lab, LOAD) as guest:
        victim.stop()
        with monkeypatch.context() as patch:
            patch.setattr(lab_hosts, "_daemon", lambda: [sys.executable, str(CRASHING), point])
            victim.start()
            victim.wait_ready()
        with contextlib.suppress(SternaError):
            guest.move(source, target)
        revive(victim)
        owner, _ = settled(guest, source, target)
        assert owner is (source if point in STAYS else target)


def kill_in_mid_move(
    guest: Traveller, source: Host, target: Host, victim: Host, at_s: float
) -> None:
    """Begin a move, kill the daemon of `victim` after `at_s`, and start it again."""

    def ask() -> None:
        with contextlib.suppress(SternaError):  # killed before it could answer
            guest.move(source, target)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(at_s)  # the moment of the fault, not a wait
    victim.kill()
    asking.join()
    revive(victim)


@pytest.mark.long
def test_a_daemon_killed_at_any_moment_leaves_one_vm_and_the_truth(lab):
    chance = random.Random(f"killed {TIMES} times")
    with traveller(lab, LOAD) as guest:
        here, there = lab.hosts
        began = time.monotonic()
        assert guest.ended(here, guest.move(here, there))["state"] == "succeeded"
        usual_s = time.monotonic() - began
        here, there = there, here
        for number in range(TIMES):
            victim = (here, there)[number % 2]
            at_s = chance.uniform(0, 1.2 * usual_s)
            before = {one["id"] for one in here.client.get("/v1/operations", {"kind": "move"})}
            kill_in_mid_move(guest, here, there, victim, at_s)
            after = here.client.get("/v1/operations", {"kind": "move"})
            if {one["id"] for one in after} == before:  # killed before the move was known
                guest.must_run_once_on(here)
                print(f"{number + 1}: {victim.name} killed at {at_s:.2f} s: no move yet")
                continue
            owner, operation = settled(guest, here, there)
            print(
                f"{number + 1}: {victim.name} killed at {at_s:.2f} s: {operation['state']}, "
                f"runs on {owner.name}"
            )
            if owner is there:
                here, there = there, here


@pytest.mark.parametrize("side", ["source", pytest.param("target", marks=pytest.mark.long)])
def test_a_daemon_stopped_while_memory_travels_undoes_the_move(lab, side):
    source, target = lab.hosts
    victim = source if side == "source" else target
    lab.shape(Network.MIGRATION, "100mbit")
    with traveller(lab, LOAD) as guest:
        operation = guest.move(source, target)
        wait_until(lambda: guest.phase_of(source, operation) == "memory", "memory travels")
        victim.stop()
        revive(victim)
        owner, ended = settled(guest, source, target)
        assert owner is source
        assert ended["id"] == operation["id"]
        lab.shape(Network.MIGRATION, None)
        assert guest.ended(source, guest.move(source, target))["state"] == "succeeded"
        guest.must_run_once_on(target)


def test_a_daemon_stopped_in_the_handover_finishes_it_first(lab):
    source, target = lab.hosts
    with traveller(lab, LOAD) as guest:
        operation = guest.move(source, target)
        wait_until(lambda: guest.phase_of(source, operation) in ("handover", "tidy"), "handover")
        source.stop()
        revive(source)
        owner, _ = settled(guest, source, target)
        assert owner is target


def test_an_old_owner_that_comes_back_late_learns_that_the_vm_has_moved_on(lab, monkeypatch):
    """a dies after b took the VM; b gives it back to nobody, restarts, and still knows."""
    source, target = lab.hosts
    with traveller(lab, LOAD) as guest:
        source.stop()
        with monkeypatch.context() as patch:
            patch.setattr(
                lab_hosts,
                "_daemon",
                lambda: [sys.executable, str(CRASHING), "source-after-take"],
            )
            source.start()
            source.wait_ready()
        guest.move(source, target)
        wait_until(lambda: source.process is None, "the source is dead")
        guest.power_off(target)
        target.client.delete("/v1/vms/tern")
        target.kill()
        target.start()
        target.wait_ready()
        source.start()
        source.wait_ready()
        assert guest.move_ended(source)["state"] == "succeeded"
        assert [host.client.get("/v1/vms") for host in lab.hosts] == [[], []]
