"""How moves share the network of their host."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from sterna.move.limits import LEAST, Limits, shares

MANY = st.lists(st.none() | st.integers(LEAST, 10**9), min_size=1, max_size=6)


@given(st.integers(10 * LEAST, 10**9), MANY)
def test_nobody_gets_more_than_asked_for_and_all_together_no_more_than_there_is(total, wishes):
    found = shares(total, wishes)
    assert sum(found) <= total
    for wish, share in zip(wishes, found, strict=True):
        assert wish is None or share <= wish
    unbounded = [share for wish, share in zip(wishes, found, strict=True) if wish is None]
    assert max(unbounded, default=0) - min(unbounded, default=0) <= len(wishes)
    if unbounded:
        assert sum(found) >= total - len(wishes)


@given(MANY)
def test_without_a_limit_everybody_gets_what_was_asked_for(wishes):
    assert shares(None, wishes) == wishes


def test_shares_follow_moves_that_begin_end_and_change_their_mind():
    told: list[tuple[str, int | None]] = []

    def teller(name):
        async def apply(share):
            told.append((name, share))

        return apply

    async def scene():
        limits = Limits(100 * LEAST)
        async with limits.member(None, teller("a")) as a:
            assert a.share == 100 * LEAST
            async with limits.member(None, teller("b")) as b:
                assert (a.share, b.share) == (50 * LEAST, 50 * LEAST)
                await b.ask(20 * LEAST)
                assert (a.share, b.share) == (80 * LEAST, 20 * LEAST)
            assert a.share == 100 * LEAST

    asyncio.run(scene())
    assert told[-1] == ("a", 100 * LEAST)
