"""Who owns a VM, under every order of crashes, losses and repetitions within bounds.

A search that finds nothing proves something only if it finds what is there: each planted mistake
must be found. The larger search is `make model`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.explore import Bounds, Broken, Host, Message, Rules, Source, World, explore
from sterna.model.vm import Ownership, OwnershipState
from sterna.move import protocol
from sterna.move.protocol import Standing, Taken

OWNED, REFUSED = OwnershipState.OWNED, OwnershipState.REFUSED
ONE = Bounds(moves=1, crashes=1, power=1, deaths=0, fences=1, messages=2)
TWICE = Bounds(moves=2, crashes=1, power=0, fences=0, messages=1)
THREE = Bounds(hosts=3, moves=2, crashes=0, power=0, fences=0, messages=1)


POSTCOPY = Bounds(moves=1, crashes=1, power=1, fences=1, messages=2, postcopy=True)
TORN = Bounds(moves=1, crashes=1, power=0, deaths=1, fences=0, messages=2, postcopy=True)


@pytest.mark.parametrize(
    ("bounds", "states"),
    [(ONE, 3_000), (TWICE, 5_000), (THREE, 2_000), (POSTCOPY, 10_000), (TORN, 6_000)],
    ids=["1", "2", "3 hosts", "post-copy", "post-copy, a QEMU dies"],
)
def test_no_order_of_events_makes_two_owners_or_none_for_ever(bounds, states):
    found = explore(bounds)
    print(f"{bounds}: {found}")
    assert found.states > states  # a search that stops early proves nothing
    assert found.settled > 10


def yields_without_writing(now: Standing, operation: str, peer: str) -> Standing:
    return now


def goes_on_after_silence(now: Standing, *, asked_before: bool) -> Standing:
    return protocol.source_undelivered(now, asked_before=False)


def believes_any_answer(now: Standing, operation: str, epoch: int, answer: OwnershipState):
    return protocol.source_answer(now, now.ownership.operation, now.epoch, answer)


def tells_before_it_writes(
    now: Standing | None, operation: str, epoch: int, *, is_whole: bool
) -> Taken:
    taken = protocol.on_take(now, operation, epoch, is_whole=is_whole)
    return Taken(now, REFUSED) if taken.answer is REFUSED else taken


def takes_after_a_refusal(
    now: Standing | None, operation: str, epoch: int, *, is_whole: bool
) -> Taken:
    if now is None or now.state is REFUSED:
        now, is_whole = protocol.on_reserve(now, operation, epoch, "0"), True
    return protocol.on_take(now, operation, epoch, is_whole=is_whole)


def forgets_what_it_took(
    now: Standing | None, operation: str, epoch: int, *, is_whole: bool
) -> Taken:
    taken = protocol.on_take(now, operation, epoch, is_whole=is_whole)
    if now is None or taken.standing is None:
        return taken
    return Taken(replace(taken.standing, owned_epoch=now.owned_epoch), taken.answer)


def refuses_but_remembers_that_it_took(now: Standing, owned_before: int) -> Standing:
    return protocol.not_run(now, now.owned_epoch)


def owns_what_it_yielded(now: Standing) -> Standing:
    """A restarted source that takes its silence for a no."""
    return protocol.source_undelivered(now, asked_before=False)


def fences_without_a_new_epoch(now: Standing) -> Standing | None:
    fenced = protocol.fence(now)
    return fenced and replace(fenced, ownership=replace(fenced.ownership, epoch=now.epoch - 1))


def does_not_listen(now: Standing | None, epoch: int) -> Standing | None:
    return now


def forgets_whom_to_tell(now: Standing) -> Standing | None:
    fenced = protocol.fence(now)
    return fenced and replace(fenced, fenced=())


FEW = Bounds(moves=1, crashes=1, power=1, fences=1, messages=3)
PLANTED = {
    "the source goes on after silence": (FEW, Rules(source_undelivered=goes_on_after_silence)),
    "take is sent before it is written": (FEW, Rules(source_yield=yields_without_writing)),
    "the source forgets its doubt in a restart": (FEW, Rules(on_restart=owns_what_it_yielded)),
    "an answer of another move counts": (
        Bounds(moves=2, crashes=0, power=0, fences=0, messages=3),
        Rules(source_answer=believes_any_answer),
    ),
    "a refusal is told before it is written": (FEW, Rules(on_take=tells_before_it_writes)),
    "a take counts after a refusal": (
        Bounds(moves=1, crashes=0, power=0, fences=0, messages=3),
        Rules(on_take=takes_after_a_refusal, remembers_decisions=False),
    ),
    "the target forgets that it took it": (FEW, Rules(on_take=forgets_what_it_took)),
    "a target that could not run it remembers that it took it": (
        FEW,
        Rules(not_run=refuses_but_remembers_that_it_took),
    ),
    "a host is fenced that is not off": (FEW, Rules(is_truthful=False)),
    "a fence takes the old epoch": (FEW, Rules(fence=fences_without_a_new_epoch)),
    "a fenced host is not told": (FEW, Rules(fence=forgets_whom_to_tell)),
    "a source in post-copy ends its QEMU too soon": (POSTCOPY, Rules(serves=False)),
    "a source in post-copy goes on after silence": (
        POSTCOPY,
        Rules(source_undelivered=goes_on_after_silence),
    ),
    "a source in post-copy forgets its doubt in a restart": (
        POSTCOPY,
        Rules(on_restart=owns_what_it_yielded),
    ),
    "a fenced host does not listen": (FEW, Rules(on_fenced=does_not_listen)),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake):
    bounds, rules = PLANTED[mistake]
    with pytest.raises(Broken) as found:
        explore(bounds, rules)
    print(found.value)


def test_a_fence_must_ask_whether_the_vm_went_on():
    """a is in doubt about b, which has taken the VM: it may be on c when b is off."""
    yielding = protocol.source_yield(owned(1), "1", "1")
    in_doubt = World(
        (
            Host(yielding, qemu="paused", source=Source("asking", 1, 1)),
            Host(owned(2), qemu="running"),
            Host(None),
        ),
        moves=((0, 1),),
        newest=2,
    )
    bounds = Bounds(hosts=3, moves=2, crashes=0, power=1, fences=1, messages=1)
    assert explore(bounds, first=in_doubt).states > 500
    with pytest.raises(Broken, match="own it"):
        explore(bounds, Rules(blocks_fence=lambda *_: False), in_doubt)


def test_a_reservation_that_was_under_way_for_long_does_not_replace_an_owner():
    released = protocol.release(owned(2))
    late = Message("reserve", 1, 0, 1, epoch=2)
    world = World(
        (Host(released), Host(owned(2))), net=frozenset({late}), moves=((0, 1), (0, 1)), newest=2
    )
    bounds = Bounds(moves=2, crashes=1, power=0, fences=0, messages=2)
    explore(bounds, first=world)
    with pytest.raises(Broken, match="no way leads to one owner"):
        explore(bounds, Rules(admits=lambda known, epoch: True), world)


def owned(epoch: int = 3) -> Standing:
    return Standing(ownership=Ownership(state=OWNED, epoch=epoch), owned_epoch=epoch)


def test_the_epoch_after_a_fence_is_above_the_one_that_was_given_away():
    yielding = protocol.source_yield(owned(), "op", "b")
    assert yielding is not None
    fenced = protocol.fence(yielding)
    assert fenced is not None
    assert (fenced.state, fenced.epoch, fenced.owned_epoch) == (OWNED, 5, 5)
    assert [(one.peer, one.epoch) for one in fenced.fenced] == [("b", 4)]
    assert protocol.fence(fenced) is None
    assert protocol.on_told(fenced, "b", 4).fenced == ()
    assert protocol.on_told(fenced, "c", 4) == fenced


def test_a_fence_ends_what_rests_on_its_epoch_and_nothing_newer():
    assert protocol.on_fenced(owned(4), 4).state is OwnershipState.RELEASED
    assert protocol.on_fenced(owned(5), 4) == owned(5)
    going_on = protocol.source_yield(owned(4), "op", "c")
    assert protocol.on_fenced(going_on, 4).state is OwnershipState.RELEASED
    assert protocol.on_fenced(None, 4) is None
    reserved = protocol.on_reserve(None, "op", 4, "a")
    assert protocol.on_fenced(reserved, 4).state is REFUSED
