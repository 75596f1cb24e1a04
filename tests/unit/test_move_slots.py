"""Turns at a target: who asked first is first, also if it could not ask for a while."""

from sterna import clock
from sterna.move import slots


def test_who_waited_for_a_slot_of_its_own_has_its_place_at_the_target_still(monkeypatch):
    now = 0.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    turns = slots.Turns()
    assert turns.place("first", free=0) == 1
    assert turns.place("second", free=0) == 2
    now += slots.ASKING_S + 1  # first waits for a slot of its own host
    assert turns.place("second", free=0) == 1, "it stands in nobody's way meanwhile"
    assert turns.place("first", free=0) == 1
    assert turns.place("second", free=1) == 1, "first was there before"
    assert turns.place("first", free=1) == 0
    assert turns.place("second", free=1) == 0


def test_who_never_asks_again_is_forgotten(monkeypatch):
    now = 0.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    turns = slots.Turns()
    turns.place("gone", free=0)
    now += slots.KEPT_S + 1
    turns.place("other", free=0)
    assert turns.place("gone", free=0) == 2
