"""Which carrier is chosen, over a table of links, guests and hosts."""

from __future__ import annotations

import pytest

from sterna.move.carriers import NEVER_S, Measured, choose
from sterna.move.sample import Memory
from sterna.units import GIB, MIB

GBIT = 125e6
USED = 600 * MIB


@pytest.mark.parametrize(
    ("measured", "kind"),
    [
        (Measured(link=GBIT, memory=Memory(used=USED)), "compression"),
        (Measured(link=GBIT / 10, memory=Memory(used=USED)), "compression"),
        (Measured(link=GBIT, memory=Memory(used=USED, dirty=100e6)), "compression"),
        (Measured(link=10 * GBIT, memory=Memory(used=USED)), "direct"),
        (Measured(link=2e9, memory=Memory(used=USED)), "direct"),
        (Measured(link=2e9, memory=Memory(used=USED, dirty=100e6)), "direct"),
        (Measured(link=2e9, memory=Memory(used=USED), limit=int(GBIT)), "compression"),
        (Measured(link=GBIT, memory=Memory(used=USED), idle_here=0.0, idle_there=0.0), "direct"),
        (Measured(link=GBIT / 10, memory=Memory(used=USED), idle_here=0.0, idle_there=2.0), "compression"),
        (Measured(link=GBIT, memory=Memory(used=4 * MIB)), "direct"),
        (Measured(link=GBIT, memory=Memory(used=USED, dirty=200e6), disks=10 * GIB), "compression"),
        (Measured(link=None, memory=Memory(used=USED)), "direct"),
    ],
    ids=[
        "1 Gbit/s", "100 Mbit/s", "1 Gbit/s, busy guest", "10 Gbit/s", "no limit", "no limit, busy guest",
        "no limit but the user's", "busy hosts", "busy hosts, 100 Mbit/s", "tiny guest", "disks", "unknown",
    ],
)  # fmt: skip
def test_the_carrier_is_the_one_that_is_through_first(measured, kind):
    choice = choose("auto", measured)
    assert choice.kind == kind, choice
    assert choice.reason
    assert "\n" not in choice.reason


@pytest.mark.parametrize("wished", ["direct", "compression"])
def test_what_is_asked_for_is_taken_and_forecast(wished):
    for link in (GBIT, 2e9, None):
        choice = choose(wished, Measured(link=link, memory=Memory(used=USED)))
        assert (choice.kind, choice.reason) == (wished, "it was asked for")
        assert (choice.forecast is None) == (link is None)


def test_a_guest_that_outruns_a_carrier_is_forecast_never_to_arrive():
    fast = Measured(link=GBIT, memory=Memory(used=USED, dirty=150e6))
    direct, relayed = choose("auto", fast).forecasts
    assert direct.total_s == NEVER_S
    assert relayed.total_s < 20


@pytest.mark.parametrize("kind", ["direct", "compression"])
def test_what_a_forecast_says_is_needed_lets_the_rounds_end(kind):
    def forecast(**known):
        fast = Memory(used=USED, dirty=300e6, first=0.8, again=0.8)
        return choose(kind, Measured(**{"link": GBIT, "memory": fast, **known})).forecast

    never = forecast()
    assert never.total_s == NEVER_S
    assert forecast(max_pause_s=never.needs.pause_ms / 1000 * 1.001).needs is None
    assert forecast(max_pause_s=never.needs.pause_ms / 1000 * 0.2).needs is not None
    assert forecast(link=never.needs.link).needs is None
    assert forecast(link=never.needs.link * 0.8).needs is not None
    too_slow = forecast(memory=Memory(used=USED, dirty=900e6))
    assert too_slow.needs.link is None


def test_a_forecast_grows_with_what_is_to_be_sent():
    def total(**known):
        one = choose("direct", Measured(link=GBIT, **known)).forecast
        assert one is not None
        return one.total_s, one.wire

    assert (
        total(memory=Memory(used=USED))
        < total(memory=Memory(used=USED, dirty=50e6))
        < total(memory=Memory(used=USED), disks=GIB)
    )
