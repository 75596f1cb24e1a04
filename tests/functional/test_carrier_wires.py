"""A link over real interfaces: shaped, cut, limited. Each side is a process in its own namespace."""

import time
from collections.abc import Iterator

import pytest

from link_rig import eventually
from wires import MBIT, Wires

pytestmark = [pytest.mark.functional]
MIB = 1 << 20
TRIES = 8  # others use this machine too: it may be too slow for a moment


@pytest.fixture
def wires() -> Iterator[Wires]:
    made = Wires(2)
    yield made
    made.remove()


def test_two_channels_carry_more_than_one(wires):
    wires.shape("100mbit")

    def rate(routes: int) -> float:
        with wires.transfer(routes=routes, size=10 * routes * MIB) as transfer:
            return transfer.result().rate

    for _ in range(TRIES):
        alone, together = rate(1), rate(2)
        assert alone < 100 * MBIT
        if alone > 0.85 * 100 * MBIT and together > 1.8 * alone:
            return
    raise AssertionError(f"{alone:.0f} bytes/s over one, {together:.0f} over two")


def test_a_cable_pulled_for_some_seconds_costs_little_more(wires):
    wires.shape("200mbit")
    with wires.transfer(routes=2, size=80 * MIB) as transfer:
        transfer.wait_for(15 * MIB)
        wires.pull(0)
        transfer.wait_for(40 * MIB)  # the other one carries on
        assert eventually(lambda: transfer.states()[0] in {"stalled", "down"})
        wires.plug(0)
        assert eventually(lambda: transfer.states() == ["up", "up"], 10)
        done = transfer.result()
    assert done.is_whole
    assert done.retransmitted > 0


def test_one_of_two_cut_for_good_goes_on_at_the_speed_of_the_other(wires):
    wires.shape("200mbit")
    with wires.transfer(routes=2, size=120 * MIB) as transfer:
        transfer.wait_for(15 * MIB)
        wires.pull(1)
        begun, before = time.monotonic(), transfer.received
        transfer.wait_for(50 * MIB)
        took = time.monotonic() - begun
        assert (transfer.received - before) / took > 0.6 * 200 * MBIT
        assert eventually(lambda: transfer.states() == ["up", "down"])
        assert transfer.result().is_whole


def test_a_silent_cable_is_found_and_all_goes_on_when_it_is_back(wires):
    """No reset, no carrier lost: only nothing comes any more."""
    wires.shape("200mbit")
    with wires.transfer(routes=1, size=40 * MIB) as transfer:
        transfer.wait_for(10 * MIB)
        wires.pull(0)
        begun = time.monotonic()
        assert eventually(lambda: transfer.stats["down_since"] is not None, 10)
        assert 2.0 < time.monotonic() - begun < 4.5
        wires.plug(0)
        done = transfer.result()
    assert done.is_whole
    assert any("nothing heard" in text for text in done.events)


def test_all_cut_for_longer_than_the_grace_period_ends_it_on_both_sides(wires):
    with wires.transfer(routes=2, size=400 * MIB, grace_s=1.0, limit=20_000_000) as transfer:
        transfer.wait_for(MIB)
        for number in (0, 1):
            wires.pull(number)
        for text in transfer.failures():
            assert "no connection to the other host for 1 s" in text


def test_a_limit_is_kept_on_the_interface_and_can_change(wires):
    wires.exact()
    limits = [40 * MBIT, 16 * MBIT, 80 * MBIT]
    with wires.transfer(routes=2, size=2000 * MIB, limit=limits[0]) as transfer:
        transfer.wait_for(MIB)
        for limit in limits:
            transfer.limit(limit)
            time.sleep(0.3)  # what the old limit let into sockets
            assert transfer.stats["limited"]
            rates = []
            while not any(rate > 0.95 * limit for rate in rates):
                rates.append(wires.rate(0.7))
                assert rates[-1] < 1.05 * limit
                assert len(rates) < TRIES, rates
        transfer.limit(None)
        assert eventually(lambda: not transfer.stats["limited"])
        assert wires.rate(0.5) > 2 * limits[0]
