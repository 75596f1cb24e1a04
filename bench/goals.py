"""The guests, links and cases of the table of carriers, and what the project promises in each.

All but the pause that the user allows are ratios between movers of the same run, so that they
mean the same on another machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from movers import DOWNTIME_MS

REGION_MB = 600  # MiB in use, all of it filled and, by guests that write, written in a circle
# Orders to the lab's guest.
GUESTS = {
    "idle": f"mem size_mb={REGION_MB} rate_mb=0 pattern=touch fill=mixed",
    "touch100": f"mem size_mb={REGION_MB} rate_mb=100 pattern=touch fill=mixed",
    "touch400": f"mem size_mb={REGION_MB} rate_mb=400 pattern=touch fill=mixed",
    "random60": f"mem size_mb={REGION_MB} rate_mb=60 pattern=random fill=mixed",
}
LINKS = {"1gbit": "1gbit", "100mbit": "100mbit", "unshaped": None}
FELT = 1.2  # x the felt pause of the best peer
FORECAST_PERCENT, FORECAST_MS = 25, 50  # that a total, and a pause, may be off what was forecast
COMPRESSING = {"qemu-multifd-zstd"}


@dataclass(frozen=True, slots=True)
class Case:
    """One guest on one link. Goals are ratios; 0: none.

    Half of what is in use is random: nobody sends less than that. Where the link alone decides, a
    peer that compresses comes close to it, so the ratio to the best of those that do not is told as
    well (`total_of_plain`).
    """

    guest: str
    link: str
    deadline_s: float = 90.0
    total: float = 0.0  # x the best peer's
    total_of_plain: float = 0.0  # x the best peer's of those that send pages as they are
    total_of_qemu: float = 0.0  # x QEMU's with one TCP connection
    wire_of_qemu: float = 0.0
    work: float = 0.0  # x the guest's own before the move
    felt_ms: float = DOWNTIME_MS
    peers: tuple[str, ...] = ()  # that differ from each other here; none named: all
    quick: tuple[str, ...] = ("qemu", "qemu-multifd-zstd", "virsh")  # peers of --quick
    is_quick: bool = True

    @property
    def name(self) -> str:
        return f"{self.guest} at {self.link}"


CASES = (
    Case("idle", "1gbit", 60, total=0.75),
    Case(
        "touch100", "1gbit", 60, total_of_qemu=8 / 48, wire_of_qemu=0.1,
        quick=("qemu", "virsh-postcopy"),
    ),
    # Who has not finished by then is not the best: post-copy takes less than half of it.
    Case("touch400", "1gbit", 25, total=0.8, work=0.7, felt_ms=500, quick=("virsh-postcopy",)),
    Case("random60", "1gbit", 60, total=1.05, quick=("qemu", "qemu-multifd-zstd", "virsh-postcopy")),
    Case(
        "idle", "100mbit", 90, total=0.55, total_of_plain=0.55,
        # A minute each: those that only do something for a guest that writes are left out.
        peers=("qemu", "qemu-multifd", "qemu-multifd-zstd", "virsh"),
        quick=("qemu-multifd-zstd",),
    ),
    Case("idle", "unshaped", 30, total=1.1, quick=("qemu", "qemu-multifd", "virsh")),
    Case("touch100", "unshaped", 30, total=1.1, quick=("qemu", "qemu-multifd", "virsh")),
)  # fmt: skip


def judge(
    case: Case, rows: Mapping[str, Mapping[str, Any]], peers: Collection[str]
) -> dict[str, bool]:
    """Whether each goal is met by the first of our ways. Rows: medians by way.

    A peer that did not finish in all its runs is no best peer. Where QEMU itself did not finish,
    its deadline and what it had sent by then stand for it: it would have needed more.
    """
    way = next((way for way in rows if way not in peers), None)
    if way is None:
        return {}
    ours = rows[way]
    if ours["finished"] < ours["runs"]:
        return {f"{way} finishes in {case.deadline_s:g} s": False}
    done = {p: r for p, r in rows.items() if p in peers and r["finished"] == r["runs"]}
    found: dict[str, bool] = {}
    if done:
        found |= _beside(case, ours, done)
    # A pause that no peer kept either is not reachable here: the first look at all pages of an
    # emulated guest takes longer. Then the switch from host to host counts.
    is_reachable = not done or any(row["felt_ms"] <= case.felt_ms for row in done.values())
    key, words = (
        ("felt_ms", "felt pause") if is_reachable else ("felt_switch_ms", "silence at the switch")
    )
    found[f"{words} {ours[key]:.0f} ms, at most {case.felt_ms:g}"] = ours[key] <= case.felt_ms
    if qemu := rows.get("qemu"):
        found |= _beside_qemu(case, ours, qemu)
    if case.work and ours["work_ratio"] is not None:
        ratio = ours["work_ratio"]
        found[f"work during the move {ratio:.2f} x before, at least {case.work:g}"] = (
            ratio >= case.work
        )
    return found | _forecast(ours)


def _beside(
    case: Case, ours: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]]
) -> dict[str, bool]:
    """Beside the best peer that finished, and the best of those that send pages as they are."""
    found = {}
    name = min(done, key=lambda peer: done[peer]["total_s"])
    best = done[name]
    if case.total:
        ratio = ours["total_s"] / best["total_s"]
        found[f"total {ratio:.2f} x {name}'s, at most {case.total:g}"] = ratio <= case.total
    plain = {p: r for p, r in done.items() if p not in COMPRESSING}
    if case.total_of_plain and plain:
        other = min(plain, key=lambda peer: plain[peer]["total_s"])
        ratio, goal = ours["total_s"] / plain[other]["total_s"], case.total_of_plain
        found[f"total {ratio:.2f} x {other}'s, at most {goal:g}"] = ratio <= goal
    ratio = ours["felt_ms"] / best["felt_ms"]
    found[f"felt pause {ratio:.2f} x {name}'s, at most {FELT}"] = ratio <= FELT
    return found


def _beside_qemu(case: Case, ours: Mapping[str, Any], qemu: Mapping[str, Any]) -> dict[str, bool]:
    """Beside QEMU with one TCP connection."""
    found = {}
    if goal := case.total_of_qemu:
        ratio = ours["total_s"] / (qemu["total_s"] or case.deadline_s)
        found[f"total {ratio:.3f} x QEMU's, at most {goal:.3f}"] = ratio <= goal
    if goal := case.wire_of_qemu:
        ratio = ours["bytes_wire"] / qemu["bytes_wire"]
        found[f"bytes on the wire {ratio:.3f} x QEMU's, at most {goal:g}"] = ratio <= goal
    return found


def _forecast(ours: Mapping[str, Any]) -> dict[str, bool]:
    """What was expected, if anything was."""
    percent, ms = ours["forecast_total_percent"], ours["forecast_pause_ms"]
    if percent is None or ms is None:
        return {}
    return {
        f"total {percent:+.0f} % off its forecast, at most {FORECAST_PERCENT} %": (
            abs(percent) <= FORECAST_PERCENT
        ),
        f"pause {ms:+.0f} ms off its forecast, at most {FORECAST_MS} ms": abs(ms) <= FORECAST_MS,
    }
