"""Over how many channels QEMU sends to QEMU, over a table of hosts, links and wishes."""

from __future__ import annotations

import asyncio

import pytest

from sterna.errors import Failed
from sterna.model.reservation import CarrierReady, ReservationStatus
from sterna.model.vm import OwnershipState
from sterna.move.carriage import Direct
from sterna.move.multifd import accepted, capability, offered

KNOWN = {"multifd", "events"}
GBIT = 125e6


@pytest.mark.parametrize(
    ("link", "limit", "cpus", "channels"),
    [
        (GBIT, None, 64, 0),
        (None, None, 64, 0),
        (10 * GBIT, None, 64, 2),
        (25 * GBIT, None, 64, 4),
        (100 * GBIT, None, 64, 8),
        (100 * GBIT, None, 8, 4),
        (100 * GBIT, None, 2, 0),
        (100 * GBIT, None, 1, 0),
        (100 * GBIT, int(5 * GBIT), 64, 0),
    ],
    ids=[
        "1 Gbit/s", "unknown", "10 Gbit/s", "25 Gbit/s", "100 Gbit/s", "few processors", "two", "one",
        "the user's limit",
    ],
)  # fmt: skip
def test_a_source_offers_what_the_link_takes_and_the_guests_can_spare(link, limit, cpus, channels):
    assert offered(None, KNOWN, cpus=cpus, link=link, limit=limit) == channels


@pytest.mark.parametrize(("wished", "channels"), [(0, 0), (1, 0), (2, 2), (8, 8)])
def test_the_configuration_has_the_last_word_on_either_side(wished, channels):
    assert offered(wished, KNOWN, cpus=1, link=None, limit=None) == channels
    assert accepted(8, wished, KNOWN, cpus=1) == channels


def test_a_target_takes_no_more_than_was_offered_nor_than_its_processors_spare():
    assert accepted(4, 8, KNOWN, cpus=64) == 4
    assert accepted(8, None, KNOWN, cpus=6) == 3
    assert accepted(8, None, KNOWN, cpus=2) == 0
    assert accepted(0, 8, KNOWN, cpus=64) == 0


def test_a_qemu_without_it_sends_and_takes_one_stream():
    assert offered(8, {"events"}, cpus=64, link=100 * GBIT, limit=None) == 0
    assert accepted(8, 8, {"events"}, cpus=64) == 0
    assert capability(0) == frozenset()


def test_a_target_that_awaits_more_than_was_offered_is_not_connected_to():
    opened = ReservationStatus(
        operation="1",
        state=OwnershipState.RESERVED,
        carrier=CarrierReady(channels=4),
    )
    path = Direct(None, "hv-a", is_encrypted=False, channels=2)
    with pytest.raises(Failed, match="awaits 4 channels"):
        asyncio.run(path.begin(opened))
