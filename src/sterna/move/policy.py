"""The convergence policy: what to do when a guest changes its memory as fast as it is sent. Pure.

A policy is a ladder (`LADDERS`), one for each `on_stall`. It is climbed a rung when a round has
gained nothing, when the rest would take too long, or when the deadline comes near; and it is never
climbed while the link is down. Each pass gives a `Decision`: the limit that QEMU is to have now, a
forecast, and if a rung was climbed the action with its reason.

QEMU stops the guest when what is left is at most its limit times the bandwidth that it saw in the
last 100 ms. That is not the bandwidth of the last copy (a cap does not hold for it, a carrier may
know better), and the pause has other parts too. So the limit that QEMU gets is computed anew from
what was measured; the pause that is meant is in `allowed_ms`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from sterna.model.move import OnStall
from sterna.units import format_rate

# Of a pause, without memory and disks: the guest's stop, device state, what both hosts write down
# and say, the continuation. Measured: 25 to 60 ms, more on a busy host.
OVERHEAD_MS = 60.0
MARGIN = 0.9  # a guest writes on between QEMU's decision and its stop
LEAST_MS = 30.0  # of the pause for memory, however much the rest of it takes
MAX_LIMIT_MS = 2_000_000  # QEMU's own
GAIN = 0.9  # a round has gained something if it leaves less than so much of the best before
NO_END = 0.97  # rounds that shrink by less than this are not going to end
TOO_LONG = {"pause": 1.0, "throttle": 6.0, "postcopy": 4.0}  # rest of the rounds, in first rounds
NEAR = 1.5  # a deadline that is less than so many times the rest away
FELT_MORE = 4  # percent; a rung that throttles by less more is passed over
MEASURED_MOST = 85  # percent of throttle that a measurement may ask for at once
AIM = 0.6  # throttled so far that a round leaves so much of the one before
MAX_ROUNDS = 100  # to think ahead
ROUND_S = 0.25  # shorter rounds are judged together
FORESEEN_S = 0.5  # of a round's flow tell its rate, and so where a guest of a known pace will be
WINDOW_S = 1.0  # of the rate
OBSERVED_S = 3.0  # of what QEMU saw
EFFECT_ROUNDS, EFFECT_S = 4, 3.0  # QEMU throttles at every second round of more than a second
RESCALE = 0.05  # a limit that differs by less is left as it is


class Kind(StrEnum):
    """What a rung does. The order is that of the harm."""

    PAUSE = "pause"  # allow such a share of the longest pause that the user accepts
    THROTTLE = "throttle"  # take at least so many percent of its time from the guest
    POSTCOPY = "postcopy"  # let it run on the target while its memory still travels
    GIVE_UP = "give-up"


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a ladder. It is left after `patience` rounds that gained nothing."""

    kind: Kind
    amount: float = 0.0
    patience: int = 1


_PAUSES = (Rung(Kind.PAUSE, 0.5), Rung(Kind.PAUSE, 0.75), Rung(Kind.PAUSE, 1.0, 1))
_THROTTLES = tuple(Rung(Kind.THROTTLE, amount, 1) for amount in (40, 70, 85, 93))
LADDERS: dict[OnStall, tuple[Rung, ...]] = {
    "auto": (*_PAUSES, *_THROTTLES, Rung(Kind.THROTTLE, 97, 2), Rung(Kind.GIVE_UP)),
    "wait": _PAUSES,
    "throttle": (*_PAUSES, *_THROTTLES, Rung(Kind.THROTTLE, 99)),
    "postcopy": (*_PAUSES, Rung(Kind.POSTCOPY)),
    "abort": (*_PAUSES[:2], Rung(Kind.PAUSE, 1.0, 3), Rung(Kind.GIVE_UP)),
}


def first_limit(max_downtime_ms: float) -> int:
    """QEMU's limit before anything was measured, in ms."""
    return round(max(LEAST_MS, MARGIN * (_PAUSES[0].amount * max_downtime_ms - OVERHEAD_MS)))


def throttles(on_stall: OnStall) -> bool:
    """Whether that ladder may ever slow the guest down."""
    return any(rung.kind is Kind.THROTTLE for rung in LADDERS[on_stall])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known at one moment of a move's memory phase. Bytes are guest memory."""

    time_s: float  # since the phase began
    passes: int  # QEMU's rounds, the one under way included
    remaining: int
    sent: int  # so far
    observed: float = 0.0  # bytes/s as QEMU sees itself: what it multiplies its limit with
    final_rate: float | None = None  # bytes/s that the last copy will have, if the carrier knows
    in_flight: int = 0  # taken from QEMU, not yet given to the target's
    throttle: int = 0  # percent, now
    disks_ms: float = 0.0  # that the mirrors will need while the guest stands still
    is_link_down: bool = False
    dirty_rate: float | None = None  # bytes/s that the guest changes at its own pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A rung that was climbed: what to do, and why, in one sentence."""

    kind: Kind
    reason: str
    amount: float = 0.0  # ms of pause, or percent of throttle


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What holds from now on."""

    limit_ms: int  # for QEMU
    allowed_ms: float  # of pause, all parts
    throttle: int  # percent that is wanted
    pause_ms: float | None  # forecast of the pause at the end of this round
    rest_s: float | None  # until then; None: not known, or never
    action: Action | None = None


@dataclass(slots=True)
class _Round:
    """The last round that is over, or short ones together."""

    size: int  # left to send when it was
    seconds: float
    sent: int
    before: int  # left to send when it began
    number: int  # of passes when it began
    count: int = 1

    @property
    def rate(self) -> float:
        return self.sent / self.seconds

    @property
    def shrink(self) -> float:
        """What the next round will leave, as a share of what this one left."""
        return float((self.size / self.before) ** (1 / self.count)) if self.before else math.inf


class Policy:
    """The ladder of one move. `look` at each measurement, in the order of time."""

    def __init__(
        self,
        on_stall: OnStall,
        max_downtime_ms: float,
        *,
        deadline_s: float | None = None,
        overhead_ms: float = OVERHEAD_MS,
    ) -> None:
        self._ladder = LADDERS[on_stall]
        self._max_ms = float(max_downtime_ms)
        self._deadline_s = deadline_s  # of the memory phase
        self._overhead_ms = overhead_ms
        self._rung = 0
        self._throttle = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._observed: deque[tuple[float, float]] = deque()
        self._began: Measured | None = None  # as this round began
        self._synced: Measured  # just after the last sync: what a round has left
        self._was_down = False  # the link, in this round
        self._first_s = 0.0
        self._last: _Round | None = None
        self._best = math.inf
        self._idle = 0  # rounds without gain on this rung
        self._climbed: Measured | None = None  # when the last rung was
        self._felt_since = 0  # pass from which the throttle holds

    @property
    def allowed_ms(self) -> float:
        """The pause that is allowed now."""
        shares = [r.amount for r in self._ladder[: self._rung + 1] if r.kind is Kind.PAUSE]
        return self._max_ms * shares[-1]

    def aim(self, max_downtime_ms: float) -> None:
        """The user accepts another pause now."""
        self._max_ms = float(max_downtime_ms)

    def look(self, m: Measured) -> Decision:
        """What to do, now that this was measured."""
        self._sample(m)
        action = None
        if self._throttle and m.throttle >= self._throttle and not self._felt_since:
            self._felt_since = m.passes
        if m.is_link_down:
            self._is_over(m)
        elif self._is_over(m):
            action = self._judge(m)
        elif (coming := self._foreseen(m)) is not None:
            reason = (
                f"it changes {format_rate(coming.size)} and {format_rate(coming.sent)} are sent"
            )
            action = self._climb(m, coming, reason)
        return Decision(
            limit_ms=self._limit(m),
            allowed_ms=self.allowed_ms,
            throttle=self._throttle,
            pause_ms=self._pause(m),
            rest_s=self._rest(m, self._goal(m, self.allowed_ms)),
            action=action,
        )

    # ---- measuring ---------------------------------------------------------------------------

    def _sample(self, m: Measured) -> None:
        if m.is_link_down:
            self._samples.clear()
        self._samples.append((m.time_s, m.sent))
        while self._samples[-1][0] - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        self._observed.append((m.time_s, m.observed))
        while m.time_s - self._observed[0][0] > OBSERVED_S:
            self._observed.popleft()

    def rate(self, m: Measured) -> float:
        """Bytes/s over the last second; of the last round if there is too little to measure."""
        (then, before), (now, after) = self._samples[0], self._samples[-1]
        if now - then >= ROUND_S and after > before:
            return (after - before) / (now - then)
        return self._last.rate if self._last is not None else m.observed

    def final_rate(self, m: Measured) -> float:
        """Bytes/s of the last copy, as far as can be known."""
        return m.final_rate or self.rate(m)

    def _is_over(self, m: Measured) -> bool:
        """Whether a round has ended with this measurement, or several short ones have."""
        began, self._was_down = self._began, self._was_down or m.is_link_down
        if began is None:
            self._began = self._synced = m
            return False
        if m.passes != self._synced.passes:
            self._synced = m
        seconds = m.time_s - began.time_s
        if m.passes == began.passes or seconds < ROUND_S:
            return False
        self._began, was_down, self._was_down = m, self._was_down, False
        if was_down:  # it tells nothing
            return False
        sent = m.sent - began.sent
        self._last = _Round(
            size=self._synced.remaining,
            seconds=seconds,
            sent=sent,
            before=sent if self._last is None else self._last.size,
            number=began.passes,
            count=m.passes - began.passes,
        )
        self._first_s = self._first_s or seconds
        return True

    def _foreseen(self, m: Measured) -> _Round | None:
        """A second of this round, if it cannot gain anything and the next rung slows the guest down.

        QEMU throttles at every second sync, so a rung that waits for the end of a round comes late.
        The first round tells nothing: pages that are sent again may be sent faster.
        """
        began, upper = self._began, self._upper
        if began is None or self._last is None or not m.dirty_rate or self._was_down:
            return None
        if self._throttle or upper is None or upper.kind is not Kind.THROTTLE:
            return None
        if m.passes != began.passes:
            return None
        flowing = [one for one in self._samples if one[0] > began.time_s and one[1] > began.sent]
        if not flowing or (seconds := m.time_s - flowing[0][0]) < FORESEEN_S:
            return None
        rate = (m.sent - flowing[0][1]) / seconds
        if (
            rate <= 0
            or m.dirty_rate < NO_END * rate
            or m.remaining <= self._goal(m, self.allowed_ms)
        ):
            return None
        return _Round(
            size=round(m.dirty_rate),
            seconds=1.0,
            sent=round(rate),
            before=round(rate),
            number=m.passes,
        )

    # ---- what would be ------------------------------------------------------------------------

    def _other_ms(self, m: Measured) -> float:
        """Of the pause, all but the memory that QEMU still has."""
        rate = self.final_rate(m)
        return self._overhead_ms + m.disks_ms + (m.in_flight / rate * 1000 if rate else 0.0)

    def _memory_ms(self, m: Measured, allowed_ms: float) -> float:
        return max(LEAST_MS, MARGIN * (allowed_ms - self._other_ms(m)))

    def _goal(self, m: Measured, allowed_ms: float) -> float:
        """Bytes that may be left for such a pause."""
        return self._memory_ms(m, allowed_ms) / 1000 * self.final_rate(m)

    def _limit(self, m: Measured) -> int:
        """QEMU's limit: milliseconds of the bandwidth that it sees, for the bytes that we mean.

        What it sees jumps, and it multiplies at any moment: the most of late counts, because a limit
        that is too small costs a round, and one that is too large a long pause.
        """
        share = self._memory_ms(m, self.allowed_ms)
        most = max(observed for _, observed in self._observed)
        if m.final_rate and most:
            share *= m.final_rate / most
        return max(1, min(MAX_LIMIT_MS, round(share)))

    def _rest(self, m: Measured, goal: float) -> float | None:
        """Seconds until a round leaves at most `goal`; None: never, as it looks."""
        last = self._last
        if last is None or not last.rate:
            rate = self.rate(m)
            return m.remaining / rate if rate else None
        size, seconds, shrink = float(m.remaining), 0.0, last.shrink
        if shrink >= NO_END and last.size > goal:
            return None
        for _ in range(MAX_ROUNDS):
            if size <= goal:
                return seconds
            seconds += size / last.rate
            size = min(size * shrink, last.size)
        return None

    def _pause(self, m: Measured) -> float | None:
        """What is dirty at the end of this round, sent at once, and all other parts."""
        rate = self.final_rate(m)
        if not rate:
            return None
        last = self._last
        dirty = m.remaining * (1 if last is None else min(1.0, last.shrink))
        return dirty / rate * 1000 + self._other_ms(m)

    # ---- judging -------------------------------------------------------------------------------

    def _judge(self, m: Measured) -> Action | None:
        """A round is over: climb, or wait on."""
        last = self._last
        if last is None or last.size <= self._goal(m, self.allowed_ms):
            return None
        if (reason := self._why_climb(m, last)) is None:
            return None
        return self._climb(m, last, reason)

    def _why_climb(self, m: Measured, last: _Round) -> str | None:
        if self._is_waiting_for_throttle(m, last):
            return None
        best = last.before if math.isinf(self._best) else self._best
        has_gained = last.size < best * GAIN
        self._best = min(best, last.size)
        self._idle = 0 if has_gained else self._idle + 1
        rung = self._ladder[self._rung]
        if self._idle >= rung.patience:
            return f"{_times(self._idle, 'round')} gained nothing"
        upper = self._upper
        if upper is None or upper.kind is Kind.GIVE_UP:
            return None
        rest = self._rest(m, self._goal(m, self.allowed_ms))
        if rest is not None and rest > TOO_LONG[upper.kind] * self._first_s:
            return f"the rounds would take another {rest:.0f} s"
        left = math.inf if self._deadline_s is None else self._deadline_s - m.time_s
        if left < NEAR * (rest if rest is not None else 2 * last.seconds):
            return f"the deadline is in {max(0.0, left):.0f} s"
        return None

    @property
    def _upper(self) -> Rung | None:
        """The next rung."""
        return self._ladder[self._rung + 1] if self._rung + 1 < len(self._ladder) else None

    def _is_waiting_for_throttle(self, m: Measured, last: _Round) -> bool:
        """A throttle is judged by a whole round under it. QEMU may need two to begin."""
        if not self._throttle:
            return False
        if self._felt_since:
            return last.number < self._felt_since
        climbed = self._climbed
        return climbed is not None and (
            m.passes - climbed.passes < EFFECT_ROUNDS or m.time_s - climbed.time_s < EFFECT_S
        )

    def _climb(self, m: Measured, last: _Round, reason: str) -> Action | None:
        """The next rung that makes a difference. A longer pause that is not enough makes none, and
        costs nothing: it is allowed, and the rung after it is climbed too.
        """
        while self._rung + 1 < len(self._ladder):
            self._rung += 1
            rung = self._ladder[self._rung]
            self._idle, self._best = 0, math.inf
            self._climbed, self._felt_since = m, 0
            if rung.kind is Kind.PAUSE:
                helps = last.size <= self._goal(m, self.allowed_ms)
                if helps or self._must_stay(last):
                    return Action(kind=rung.kind, amount=self.allowed_ms, reason=reason)
                continue
            if rung.kind is Kind.THROTTLE:
                wanted = self._throttle_for(rung, m, last)
                if wanted < self._throttle + FELT_MORE and self._upper is not None:
                    continue
                self._throttle = wanted
                return Action(kind=rung.kind, amount=self._throttle, reason=reason)
            return Action(kind=rung.kind, reason=reason)
        return None

    def _must_stay(self, last: _Round) -> bool:
        """On a rung that allows a longer pause: before a harm while rounds shrink still, and before
        the end of the ladder anyway.
        """
        upper = self._upper
        if upper is None or upper.kind is Kind.GIVE_UP:
            return True
        return upper.kind is not Kind.PAUSE and last.shrink < NO_END

    def _throttle_for(self, rung: Rung, m: Measured, last: _Round) -> int:
        """At least what the rung says, and what the measured rates ask for.

        Rounds that leave all that the guest ever changes tell little of its pace: what was measured
        of that beforehand spares rungs, each of which costs rounds.
        """
        above = [r.amount for r in self._ladder[self._rung + 1 :] if r.kind is Kind.THROTTLE]
        held = self._throttle / 100
        needed = 100 * (1 - AIM / last.shrink * (1 - held)) if last.shrink else 0.0
        found = round(min(max(rung.amount, needed), above[0] if above else rung.amount))
        if m.dirty_rate:
            needed = 100 * (1 - AIM * last.rate / m.dirty_rate)
            found = max(found, round(min(needed, MEASURED_MOST)))
        return found


def differs(old_ms: int, new_ms: int) -> bool:
    """Whether a limit is worth telling QEMU."""
    return abs(new_ms - old_ms) > max(1.0, RESCALE * old_ms)


def _times(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
