"""Which carrier a move takes: forecasts from what was measured, and the better one. Pure.

`direct` costs little work and sends every page in full. `compression` costs both hosts work for each
page, whatever the link, and sends little. So a slow link wants the one and a fast link the other;
a guest that writes much moves the border, because it must be outrun.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from sterna.model.disk import STRICT
from sterna.model.move import Carrier
from sterna.model.reservation import CarrierKind
from sterna.move.sample import Memory
from sterna.units import format_duration, format_rate

# Guest memory that one processor can take through each carrier, in bytes/s; measured between two
# QEMUs on one machine (bench/carriers.py). QEMU's own thread and each relay need one such.
DIRECT_BYTES_S = 800e6
RELAY_BYTES_S = 180e6  # of pages that are new to the target
AGAIN_BYTES_S = 350e6  # and of those that it has in another form
PUMP_BYTES_S = 450e6  # of disks, through the relays
START_S = 0.6  # of the target's QEMU, and the end of ours
RELAY_START_S = 0.3  # two processes
DIRECT_PAUSE_MS, RELAY_PAUSE_MS = 40.0, 70.0  # of a pause, without memory
FIRST_PAUSE = 0.5  # share of the longest pause that the convergence policy allows at first
MARGIN = 0.9  # a carrier that does more must gain at least so much
NEVER_S = 3600.0  # stands for rounds that do not end
MOST_PACE = 10.0  # hosts that are so much faster or slower than the constants
BY_LINK = 1.15  # a move that took at most so much longer than its link alone
LEARN = 0.7  # weight of the newest move
HALVINGS = 30
FEW_CPUS = 0.3  # idle: a carrier that needs work only gets this much, in competition with guests


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast two hosts really are, to the constants here; learnt from the moves between them."""

    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    direct: float = 1.0
    compression: float = 1.0

    def of(self, kind: CarrierKind) -> float:
        """Of that carrier."""
        return self.direct if kind == "direct" else self.compression

    def but(self, kind: CarrierKind, pace: float) -> Pace:
        """With another one of that carrier."""
        if kind == "direct":
            return replace(self, direct=pace)
        return replace(self, compression=pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known before a move begins. Rates in bytes/s, sizes in bytes; None: not known."""

    link: float | None  # that TCP carries now
    memory: Memory
    disks: int = 0  # that travel, allocated
    idle_here: float | None = None  # processors
    idle_there: float | None = None
    limit: int | None = None  # that the user or the host set for the wire
    max_pause_s: float = 0.3
    sync_s: float = 0.0  # that the guest stands still while QEMU looks what it has changed
    pace: Pace = Pace()


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What would let rounds end: either of these."""

    pause_ms: float  # the longest pause that is allowed
    link: float | None  # bytes/s of the link; None: no link helps, the processors are too slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected of a carrier."""

    kind: CarrierKind
    total_s: float
    pause_ms: float
    wire: int  # bytes
    needs: Needs | None = None  # of one whose rounds would not end


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The carrier, why it was chosen in a sentence, and what is expected of each."""

    kind: CarrierKind
    reason: str
    forecasts: tuple[Forecast, ...] = ()
    measured: Measured | None = None  # what they rest on

    @property
    def link(self) -> float | None:
        """Bytes/s that were measured."""
        return self.measured.link if self.measured is not None else None

    @property
    def forecast(self) -> Forecast | None:
        """Of the carrier that was chosen."""
        return next((one for one in self.forecasts if one.kind == self.kind), None)


def choose(wished: Carrier, measured: Measured) -> Choice:
    """The carrier for a running VM."""
    if measured.link is None:
        if wished != "auto":
            return Choice(kind=wished, reason="it was asked for")
        return Choice(
            kind="direct", reason="the link could not be measured, and this needs the least"
        )
    forecasts = direct, relayed = _direct(measured), _relayed(measured)
    if wished != "auto":
        return Choice(
            kind=wished, reason="it was asked for", forecasts=forecasts, measured=measured
        )
    best, other = (
        (relayed, direct) if relayed.total_s < direct.total_s * MARGIN else (direct, relayed)
    )
    reason = _reason(measured, best, other)
    return Choice(kind=best.kind, reason=reason, forecasts=forecasts, measured=measured)


def _reason(measured: Measured, best: Forecast, other: Forecast) -> str:
    link = format_rate(_link(measured))
    about = f"about {_seconds(best)} where {other.kind} would take {_seconds(other)}"
    if best.kind == "compression":
        return f"the link carries {link}, less than compression can fill with memory: {about}"
    return f"the link carries {link}, and compression would gain too little: {about}"


def _seconds(one: Forecast) -> str:
    return "for ever" if one.total_s >= NEVER_S else format_duration(one.total_s)


def _link(measured: Measured) -> float:
    link = measured.link or 1.0
    return min(link, measured.limit) if measured.limit else link


def _work(idle: float | None) -> float:
    """The share of one processor that a thread of the carrier gets."""
    return 1.0 if idle is None else min(1.0, max(FEW_CPUS, idle))


def _share(measured: Measured, kind: CarrierKind) -> float:
    """What the constants are multiplied with."""
    share = min(_work(measured.idle_here), _work(measured.idle_there))
    return share * measured.pace.of(kind)


def learnt(measured: Measured, kind: CarrierKind, total_s: float) -> Pace:
    """The pace, by a move with that carrier that took so long.

    A move that took as long as its link did tells nothing but that the hosts are not slower.
    """
    old = measured.pace.of(kind)

    def at(pace: float) -> float:
        changed = replace(measured, pace=measured.pace.but(kind, pace))
        return (_direct(changed) if kind == "direct" else _relayed(changed)).total_s

    slow, fast = 1 / MOST_PACE, MOST_PACE
    if total_s <= at(fast) * BY_LINK:
        found = old if at(old) <= total_s * BY_LINK else _solved(at, total_s * BY_LINK)
        return measured.pace.but(kind, max(old, found))
    found = slow if at(slow) <= total_s else _solved(at, total_s)
    return measured.pace.but(kind, old ** (1 - LEARN) * found**LEARN)


def _solved(at: Callable[[float], float], total_s: float) -> float:
    """The pace at which a move takes so long; it takes longer the slower they are."""
    slow, fast = 1 / MOST_PACE, MOST_PACE
    for _ in range(HALVINGS):
        middle = math.sqrt(slow * fast)
        slow, fast = (middle, fast) if at(middle) > total_s else (slow, middle)
    return math.sqrt(slow * fast)


def _direct(measured: Measured) -> Forecast:
    share = _share(measured, "direct")
    rate = min(_link(measured), DIRECT_BYTES_S * share)
    seconds, sent, pause = _rounds(measured, rate, rate, DIRECT_PAUSE_MS)
    return Forecast(
        kind="direct",
        total_s=min(NEVER_S, START_S + seconds + measured.disks / rate),
        pause_ms=pause,
        wire=round(sent + measured.disks),
        needs=_needs(measured, seconds, pause, DIRECT_BYTES_S * share),
    )


def _relayed(measured: Measured) -> Forecast:
    memory, link = measured.memory, _link(measured)
    share = _share(measured, "compression")
    first = min(link / memory.first, RELAY_BYTES_S * share)
    again = min(link / memory.again, AGAIN_BYTES_S * share)
    seconds, sent, pause = _rounds(measured, first, again, RELAY_PAUSE_MS)
    disks = measured.disks / min(link, PUMP_BYTES_S * share)
    wire = memory.used * memory.first + max(0.0, sent - memory.used) * memory.again
    return Forecast(
        kind="compression",
        total_s=min(NEVER_S, START_S + RELAY_START_S + seconds + disks),
        pause_ms=pause,
        wire=round(wire + measured.disks),
        needs=_needs(measured, seconds, pause, AGAIN_BYTES_S * share, memory.again),
    )


def _needs(
    measured: Measured, seconds: float, pause_ms: float, work: float, ratio: float = 1.0
) -> Needs | None:
    """Of rounds that do not end: `work` bytes/s of memory the processors do, `ratio` of it is sent."""
    if seconds < NEVER_S:
        return None
    dirty = measured.memory.dirty
    return Needs(pause_ms=pause_ms, link=dirty * ratio / MARGIN if dirty < work * MARGIN else None)


def _rounds(
    measured: Measured, first: float, again: float, pause_ms: float
) -> tuple[float, float, float]:
    """Seconds, bytes of guest memory and ms of pause, of rounds at these rates.

    QEMU looks what has changed before the first round and after each.
    """
    memory, sync = measured.memory, measured.sync_s
    seconds, sent = 2 * sync + memory.used / first, float(memory.used)
    rest = min(memory.used, memory.dirty * memory.used / first)
    allowed = again * max(0.0, measured.max_pause_s - pause_ms / 1000)
    if rest > allowed and memory.dirty >= again:
        return NEVER_S, NEVER_S * again, memory.used / again * 1000 + pause_ms
    while rest > allowed * FIRST_PAUSE and memory.dirty < again:
        seconds, sent = seconds + rest / again + sync, sent + rest
        rest = min(memory.used, memory.dirty * rest / again)
    return seconds + rest / again, sent + rest, rest / again * 1000 + pause_ms
