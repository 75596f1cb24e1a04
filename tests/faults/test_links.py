"""One of the two links breaks in mid-move: undone, explained, nothing left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moving import Load, Traveller, traveller, wait_until
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


@pytest.mark.long
def test_the_migration_link_is_cut_and_the_move_cancelled(moving):
    guest, source, target, operation = moving
    guest.lab.cut(target.name, Network.MIGRATION)
    source.client.post(f"/v1/operations/{operation['id']}:cancel")
    assert guest.ended(source, operation)["state"] == "cancelled"
    guest.lab.restore(target.name, Network.MIGRATION)
    guest.must_run_once_on(source)


@pytest.mark.long
def test_the_management_link_is_cut_for_good_and_both_sides_let_go(moving):
    guest, source, target, operation = moving
    guest.lab.cut(target.name, Network.MANAGEMENT)
    ended = guest.ended(source, operation)
    assert ended["state"] == "failed"
    wait_until(lambda: target.client.get("/v1/vms") == [], "the target's lease has ended")
    guest.must_run_once_on(source)
