"""QEMUs that die or freeze and links that break in mid-move: undone, explained, nothing left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from moving import Load, Traveller, traveller, wait_until
from sterna.lab import demo
from sterna.lab.hosts import Host
from sterna.lab.links import Network

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

LOAD = Load(memory_mb_s=20, memory_mb=64)
SLOW = "100mbit"  # the memory of the guest travels for 10 s and more


@pytest.fixture
def moving(lab) -> Iterator[tuple[Traveller, Host, Host, dict[str, object]]]:
    """A guest whose memory is on its way from the first host to the second."""
    source, target = lab.hosts
    lab.shape(Network.MIGRATION, SLOW)
    with traveller(lab, LOAD) as guest:
        operation = guest.move(source, target)
        wait_until(lambda: sent(guest, source, operation) > 1 << 20, "memory travels")
        yield guest, source, target, operation


def sent(guest: Traveller, source: Host, operation: dict[str, object]) -> int:
    progress = source.client.get(f"/v1/operations/{operation['id']}")["progress"]
    return int(progress.get("transferred", 0))


def qemu(host: Host) -> int:
    (pid,) = demo.qemus(host.netns, "tern")
    return pid


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stopped for the block; it may be ended meanwhile, which SIGKILL does to the frozen too."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_the_targets_qemu_dies(moving):
    guest, source, target, operation = moving
    os.kill(qemu(target), signal.SIGKILL)
    ended = guest.ended(source, operation)
    assert ended["state"] == "failed"
    assert ended["error"]["code"] == "move.failed"
    assert "exit status -9" in ended["error"]["title"]
    guest.must_run_once_on(source)


def test_the_sources_qemu_dies_and_the_vm_is_off_where_it_was(moving):
    guest, source, target, operation = moving
    os.kill(qemu(source), signal.SIGKILL)
    ended = guest.ended(source, operation)
    assert ended["state"] == "failed"
    wait_until(lambda: source.client.get("/v1/vms/tern")["state"] == "off", "it is off")
    wait_until(lambda: target.client.get("/v1/vms") == [], "the target has given it up")
    source.client.post("/v1/vms/tern:start")


@pytest.mark.long
def test_the_targets_qemu_freezes_while_memory_travels(moving):
    guest, source, target, operation = moving
    with frozen(qemu(target)):
        ended = guest.ended(source, operation)
        assert ended["state"] == "failed"
        assert "took no data" in ended["error"]["title"]
    guest.must_run_once_on(source)


def test_the_targets_qemu_freezes_in_the_handover_and_the_guest_is_back_by_yank(moving):
    """QEMU's main loop hangs in the device state then; only out of band it can be freed."""
    guest, source, target, operation = moving
    pid = qemu(target)
    guest.lab.shape(Network.MIGRATION, None)
    wait_until(lambda: guest.phase_of(source, operation) == "handover", "the handover has begun")
    with frozen(pid):
        ended = guest.ended(source, operation)
    assert ended["state"] in ("failed", "succeeded")  # the freeze may have come too late
    guest.must_run_once_on(source if ended["state"] == "failed" else target)


def test_the_migration_link_is_cut_and_the_move_cancelled(moving):
    guest, source, target, operation = moving
    guest.lab.cut(target.name, Network.MIGRATION)
    source.client.post(f"/v1/operations/{operation['id']}:cancel")
    assert guest.ended(source, operation)["state"] == "cancelled"
    guest.lab.restore(target.name, Network.MIGRATION)
    guest.must_run_once_on(source)


def test_the_targets_daemon_freezes_and_the_move_is_undone_before_the_guest_stops(moving):
    guest, source, target, operation = moving
    target.freeze()
    ended = guest.ended(source, operation)
    assert ended["state"] == "failed"
    assert "has not answered" in ended["error"]["title"]
    target.thaw()
    guest.must_run_once_on(source)


@pytest.mark.long
def test_the_management_link_is_cut_for_good_and_both_sides_let_go(moving):
    guest, source, target, operation = moving
    guest.lab.cut(target.name, Network.MANAGEMENT)
    ended = guest.ended(source, operation)
    assert ended["state"] == "failed"
    wait_until(lambda: target.client.get("/v1/vms") == [], "the target's lease has ended")
    guest.must_run_once_on(source)
