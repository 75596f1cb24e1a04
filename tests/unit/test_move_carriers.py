"""Which carrier is chosen, over a table of links, guests and hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.move.carriers import NEVER_S, Measured, Pace, choose, learnt
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


def total_s(measured: Measured, kind: str) -> float:
    """As it is forecast."""
    return next(one.total_s for one in choose("auto", measured).forecasts if one.kind == kind)


@pytest.mark.parametrize("kind", ["direct", "compression"])
@pytest.mark.parametrize("pace", [0.3, 0.5, 2.0, 4.0])
def test_forecasts_come_true_after_a_few_moves_between_hosts_of_any_pace(kind, pace):
    fast = Measured(link=40 * GBIT, memory=Memory(used=USED, dirty=20e6))
    really = total_s(replace(fast, pace=Pace(**{kind: pace})), kind)
    known = fast
    for _ in range(4):
        known = replace(known, pace=learnt(known, kind, really))
    assert total_s(known, kind) == pytest.approx(really, rel=0.16)  # as the link's share may be
    other = "direct" if kind == "compression" else "compression"
    assert known.pace.of(other) == 1.0


def test_a_move_as_long_as_its_link_tells_nothing_of_the_hosts():
    slow = Measured(link=GBIT / 10, memory=Memory(used=USED))
    assert learnt(slow, "compression", total_s(slow, "compression")) == Pace()
    assert learnt(slow, "direct", 1.1 * total_s(slow, "direct")) == Pace()


def test_hosts_that_were_thought_slow_are_found_to_be_faster_even_by_a_slow_link():
    lame = Measured(link=GBIT / 2, memory=Memory(used=USED), pace=Pace(compression=0.1))
    really = total_s(replace(lame, pace=Pace()), "compression")
    assert learnt(lame, "compression", really).compression > 0.3


def test_no_move_makes_hosts_endlessly_slow_or_fast():
    one = Measured(link=40 * GBIT, memory=Memory(used=USED))
    pace = Pace()
    for _ in range(50):
        pace = learnt(replace(one, pace=pace), "direct", 1e6)
    assert pace.direct >= 0.1
    for _ in range(50):
        pace = learnt(replace(one, pace=pace), "direct", 0.0)
    assert pace.direct <= 10.0
