"""The link of a move alone, without QEMU: two hosts as namespaces, cables shaped with tbf.

    sudo .venv/bin/python bench/link.py [--check] [--runs 3] [--only unshaped pair cut limit rtt] [-o FILE]

| experiment | what is done | goal |
|---|---|---|
| unshaped | one channel and two, as fast as they go | MB/s and CPU seconds per GB, both ends together |
| pair | one channel of 500 Mbit/s, and two | two carry at least 1.8 x one |
| cut | one of two cables pulled in mid-transfer, for good | all arrives, at the speed of one |
| limit | 200 Mbit/s over two channels that could do more | within 5 % on the interfaces' counters |
| rtt | 1 Gbit/s, without delay and with a round trip of 20 ms (made by a process: no netem needed) | at least 0.85 x the line; with delay at least 0.85 x that |

The reader compares every byte. Medians of the runs; exits 1 with --check when a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import figures
from wires import MBIT, Done, Wires

MIB = 1 << 20
CHANNEL = 500 * MBIT  # bytes/s
LIMIT = 200 * MBIT
LINE = 1000 * MBIT
ROUND_TRIP_S = 0.02
MOST = 3  # seconds that a pulled cable may stay unnoticed


def summed(done: list[Done]) -> dict[str, Any]:
    """Medians of some transfers."""
    assert all(one.is_whole for one in done)
    return {
        "mb_s": round(statistics.median(one.rate for one in done) / 1e6, 1),
        "cpu_s_per_gb": round(
            statistics.median(one.cpu_s / (one.rate * one.seconds) for one in done) * 1e9, 2
        ),
        "overhead": round(
            statistics.median(one.wire / (one.rate * one.seconds) for one in done) - 1, 4
        ),
    }


def carried(wires: Wires, routes: int, size: int, runs: int) -> dict[str, Any]:
    done = []
    for _ in range(runs):
        with wires.transfer(routes=routes, size=size) as transfer:
            done.append(transfer.result())
    return summed(done)


def unshaped(wires: Wires, runs: int) -> dict[str, Any]:
    wires.shape(None)
    return {f"{routes} channels": carried(wires, routes, 1000 * MIB, runs) for routes in (1, 2)}


def pair(wires: Wires, runs: int) -> dict[str, Any]:
    wires.shape("500mbit")
    one, two = (carried(wires, routes, 200 * routes * MIB, runs) for routes in (1, 2))
    ratio = round(two["mb_s"] / one["mb_s"], 2)
    return {"one": one, "two": two, "ratio": ratio, "good": ratio >= 1.8}


def cut(wires: Wires, runs: int) -> dict[str, Any]:
    wires.shape("500mbit")
    rates, gaps, whole = [], [], True
    for _ in range(runs):
        with wires.transfer(routes=2, size=500 * MIB) as transfer:
            transfer.wait_for(100 * MIB)
            wires.pull(1)
            begun, before = time.monotonic(), transfer.received
            last, gap = begun, 0.0
            while transfer.received < 450 * MIB:
                seen = transfer.received
                while transfer.received == seen:
                    time.sleep(0.005)
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
            rates.append((transfer.received - before) / (time.monotonic() - begun))
            gaps.append(gap)
            whole &= transfer.result().is_whole
        wires.plug(1)
    rate = statistics.median(rates)
    return {
        "mb_s_after": round(rate / 1e6, 1),
        "longest_gap_s": round(statistics.median(gaps), 2),
        "whole": whole,
        "good": whole and rate > 0.8 * CHANNEL and max(gaps) < MOST,
    }


def limit(wires: Wires, runs: int) -> dict[str, Any]:
    wires.shape(None)
    wires.exact()
    rates = []
    with wires.transfer(routes=2, size=100_000 * MIB, limit=LIMIT) as transfer:
        transfer.wait_for(20 * MIB)
        rates = [wires.rate(2.0) for _ in range(2 * runs)]
    worst = max(abs(rate / LIMIT - 1) for rate in rates)
    return {
        "mbit_s": [round(rate / MBIT, 1) for rate in rates],
        "worst": round(worst, 3),
        "good": worst <= 0.05,
    }


def rtt(wires: Wires, runs: int) -> dict[str, Any]:
    wires.shape("1gbit")
    near = carried(wires, 1, 500 * MIB, runs)
    wires.delay(ROUND_TRIP_S / 2)
    far = carried(wires, 1, 500 * MIB, runs)
    good = near["mb_s"] * 1e6 > 0.85 * LINE and far["mb_s"] > 0.85 * near["mb_s"]
    return {"0 ms": near, "20 ms": far, "good": good}


EXPERIMENTS: dict[str, Callable[[Wires, int], dict[str, Any]]] = {
    "unshaped": unshaped,
    "pair": pair,
    "cut": cut,
    "limit": limit,
    "rtt": rtt,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.only:
        wires = Wires(2)
        try:
            found[name] = EXPERIMENTS[name](wires, options.runs)
        finally:
            wires.remove()
        for key, value in found[name].items():
            print(f"{name:10} {key:14} {value}", flush=True)
    figures.write("link", {"qemu": {"version": None, "accel": None}}, options, found)
    missed = [name for name, one in found.items() if not one.get("good", True)]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
