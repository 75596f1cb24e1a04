"""The convergence policy over tables of cases, and against guests that are simulated round by round."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sterna.move import policy
from sterna.move.policy import LADDERS, MARGIN, OVERHEAD_MS, Action, Kind, Measured, Policy

MB = 1_000_000
LINK = 100 * MB  # bytes/s
STEP_S = 0.02
THROTTLE_EVERY_S = 1.0  # QEMU looks whether to throttle at most so often, and acts at every other


@dataclass
class Guest:
    """Writes `rate` bytes/s of its `hot` memory, page after page; `size` is in use."""

    rate: float
    size: float = 600 * MB
    hot: float = 600 * MB
    link: float = LINK
    cap: float | None = None  # of the rounds; the last copy goes at the link's speed
    down: tuple[float, float] = (0.0, 0.0)  # from, until


@dataclass
class Ended:
    """How a simulated move ended, and what it was like."""

    how: str
    seconds: float
    pause_ms: float = 0.0
    work: float = 1.0
    actions: list[Action] = field(default_factory=list)
    forecast_ms: float | None = None
    rounds: list[int] = field(default_factory=list)  # in which the actions were


class QEMU:
    """Rounds as QEMU 7.2 runs them: a sync at the end of each, a switch when the rest is small."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.now = 0.0
        self.passes = 1
        self.remaining = guest.size
        self.sent = 0.0
        self.dirty = 0.0
        self.throttle = 0
        self.wanted = 0
        self.limit_ms = 1
        self.work = 0.0
        self._looked = 0.0
        self._high = 0
        self.is_stopped = False

    @property
    def is_down(self) -> bool:
        begin, end = self.guest.down
        return begin <= self.now < end

    @property
    def speed(self) -> float:
        return min(self.guest.link, self.guest.cap or self.guest.link)

    def step(self) -> None:
        self.now += STEP_S
        share = 1 - self.throttle / 100
        self.work += STEP_S * share
        self.dirty = min(self.guest.hot, self.dirty + self.guest.rate * share * STEP_S)
        if self.is_down:
            return
        done = min(self.remaining, self.speed * STEP_S)
        self.remaining -= done
        self.sent += done
        if self.remaining <= self.speed * self.limit_ms / 1000:
            self.remaining = min(self.remaining + self.dirty, max(self.remaining, self.guest.hot))
            self.dirty = 0.0
            self.passes += 1
            self._throttle()
            self.is_stopped = self.remaining <= self.speed * self.limit_ms / 1000

    def _throttle(self) -> None:
        if self.now - self._looked < THROTTLE_EVERY_S:
            return
        self._looked = self.now
        self._high += 1
        if self._high == 2:
            self._high = 0
            self.throttle = self.wanted


def move(guest: Guest, on_stall: str = "auto", max_ms: float = 300, **more: float) -> Ended:
    qemu = QEMU(guest)
    ladder = Policy(on_stall, max_ms, deadline_s=more.get("deadline_s"))  # type: ignore[arg-type]
    actions: list[Action] = []
    rounds: list[int] = []
    while qemu.now < more.get("longest_s", 600.0):
        found = ladder.look(
            Measured(
                time_s=qemu.now,
                passes=qemu.passes,
                remaining=int(qemu.remaining),
                sent=int(qemu.sent),
                observed=qemu.speed,
                final_rate=guest.link if guest.cap else None,
                throttle=qemu.throttle,
                is_link_down=qemu.is_down,
                dirty_rate=min(guest.rate, guest.hot) if more.get("measured") else None,
            )
        )
        qemu.limit_ms, qemu.wanted = found.limit_ms, found.throttle
        if found.action is not None:
            actions.append(found.action)
            rounds.append(qemu.passes)
            if found.action.kind is Kind.GIVE_UP:
                return Ended("given up", qemu.now, work=qemu.work / qemu.now, actions=actions)
        forecast = found.pause_ms
        qemu.step()
        if qemu.is_stopped:
            pause = qemu.remaining / guest.link * 1000 + OVERHEAD_MS
            work = qemu.work / qemu.now
            return Ended("moved", qemu.now, pause, work, actions, forecast, rounds)
    return Ended("for ever", qemu.now, actions=actions)


BULK_S = 6.0  # 600 MB at 100 MB/s


@pytest.mark.parametrize("times", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0, 1.5, 2, 4, 10])
@pytest.mark.parametrize("hot_mb", [5, 50, 200, 600])
@pytest.mark.parametrize("max_ms", [100, 300, 1000])
def test_the_default_ends_within_bounds_whatever_the_guest_writes(times, hot_mb, max_ms):
    ended = move(Guest(rate=times * LINK, hot=hot_mb * MB), max_ms=max_ms)
    print(ended)
    assert ended.how in ("moved", "given up")
    assert ended.seconds < 20 * BULK_S
    if ended.how == "moved":
        assert ended.pause_ms <= max(max_ms, OVERHEAD_MS + policy.LEAST_MS) + 1
    if times <= 0.5:
        assert ended.how == "moved"
        assert ended.work == 1.0
        assert ended.seconds < 2.5 * BULK_S


@pytest.mark.parametrize("times", [0.7, 0.9, 1.0, 1.5, 2, 3])
def test_a_guest_that_is_throttled_keeps_most_of_its_work(times):
    ended = move(Guest(rate=times * LINK), max_ms=500)
    assert ended.how == "moved"
    assert ended.work >= {2: 0.55, 3: 0.45}.get(times, 0.65), ended


def test_a_guest_that_writes_nothing_ends_after_one_round_with_the_shortest_pause():
    ended = move(Guest(rate=0))
    assert ended.seconds < BULK_S * 1.1
    assert ended.actions == []
    assert ended.pause_ms < OVERHEAD_MS + 150


def test_rounds_that_gain_are_waited_for_with_half_of_the_pause():
    ended = move(Guest(rate=0.3 * LINK))
    assert ended.actions == []
    assert ended.pause_ms <= 150


def test_a_hot_set_that_fits_the_longest_pause_needs_nothing_but_that():
    ended = move(Guest(rate=10 * LINK, hot=18 * MB))
    assert [action.kind for action in ended.actions] == [Kind.PAUSE]
    assert ended.actions[0].amount == 300
    assert 150 < ended.pause_ms <= 300
    assert "gained nothing" in ended.actions[0].reason


@pytest.mark.parametrize(
    ("on_stall", "how", "kinds"),
    [
        ("wait", "for ever", {Kind.PAUSE}),
        ("abort", "given up", {Kind.PAUSE, Kind.GIVE_UP}),
        ("throttle", "moved", {Kind.THROTTLE}),
        ("auto", "moved", {Kind.THROTTLE}),
    ],
)
def test_each_ladder_does_what_its_user_chose(on_stall, how, kinds):
    ended = move(Guest(rate=1.5 * LINK), on_stall, longest_s=200)
    assert ended.how == how
    assert {action.kind for action in ended.actions} == kinds


def test_a_link_that_is_down_is_no_stall():
    ended = move(Guest(rate=0.3 * LINK, down=(3.0, 13.0)), "abort")
    assert ended.how == "moved"
    assert ended.actions == []


def test_a_guest_that_cannot_be_tamed_is_given_up_and_nothing_is_lost():
    ended = move(Guest(rate=100 * LINK))
    assert ended.how == "given up"
    assert ended.actions[-1].kind is Kind.GIVE_UP
    amounts = [action.amount for action in ended.actions if action.kind is Kind.THROTTLE]
    assert amounts == sorted(amounts)


def test_a_cap_does_not_make_the_pause_shorter_than_was_allowed():
    """QEMU compares with the capped bandwidth, the last copy runs without a cap."""
    ended = move(Guest(rate=0.4 * LINK, hot=18 * MB, cap=0.3 * LINK))
    assert ended.how == "moved"
    assert ended.pause_ms <= 300
    assert ended.seconds < 30


def test_what_is_in_flight_and_the_disks_are_part_of_the_pause():
    free, busy = (
        Policy("auto", 1000).look(
            Measured(time_s=1, passes=1, remaining=MB, sent=MB, observed=LINK, **more)
        )
        for more in ({}, {"in_flight": 20 * MB, "disks_ms": 100.0})
    )
    assert free.limit_ms == pytest.approx(MARGIN * (500 - OVERHEAD_MS), abs=1)
    assert busy.limit_ms == pytest.approx(MARGIN * (500 - OVERHEAD_MS - 200 - 100), abs=1)


def test_a_deadline_that_comes_near_climbs_sooner():
    slow = move(Guest(rate=0.8 * LINK), max_ms=200)
    soon = move(Guest(rate=0.8 * LINK), max_ms=200, deadline_s=14.0)
    assert soon.seconds < slow.seconds
    assert any("deadline" in action.reason for action in soon.actions)


def test_a_forecast_comes_true():
    ended = move(Guest(rate=0.3 * LINK))
    assert ended.forecast_ms == pytest.approx(ended.pause_ms, abs=60)


def test_every_ladder_begins_with_half_of_the_pause_and_harms_more_with_each_rung():
    order = list(Kind)
    for ladder in LADDERS.values():
        assert (ladder[0].kind, ladder[0].amount) == (Kind.PAUSE, 0.5)
        ranks = [(order.index(rung.kind), rung.amount) for rung in ladder]
        assert ranks == sorted(ranks)
        assert all(rung.amount <= 99 for rung in ladder)


def test_one_slow_moment_does_not_stop_the_guest_with_much_left():
    """Under a cap QEMU sees itself send in bursts. Its limit is a time, which it multiplies with
    what it sees next: the full cap again.
    """
    asked = Policy("wait", 300)
    for tick, observed in enumerate([25 * MB] * 10 + [MB // 10]):
        decision = asked.look(
            Measured(
                time_s=tick / 10,
                passes=1,
                remaining=300 * MB,
                sent=2 * MB * tick,
                observed=observed,
                final_rate=60 * MB,
            )
        )
    assert decision.limit_ms / 1000 * 25 * MB <= 0.3 * 60 * MB


def test_what_was_measured_beforehand_spares_rungs():
    without, measured = (
        move(Guest(rate=4 * LINK), max_ms=500, measured=known) for known in (False, True)
    )
    assert measured.how == without.how == "moved"
    assert measured.seconds < 0.8 * without.seconds
    assert len(measured.actions) < len(without.actions)


@pytest.mark.parametrize("times", [1.1, 2, 4])
def test_a_guest_of_a_known_pace_is_slowed_down_before_its_second_round_ends(times):
    ended = move(Guest(rate=times * LINK), measured=True)
    first = next(i for i, action in enumerate(ended.actions) if action.kind is Kind.THROTTLE)
    assert (ended.how, ended.rounds[first]) == ("moved", 2)


def test_a_guest_that_can_be_outrun_is_not_slowed_down_for_a_pace_that_is_known():
    ended = move(Guest(rate=0.5 * LINK), measured=True)
    assert not [action for action in ended.actions if action.kind is Kind.THROTTLE]
