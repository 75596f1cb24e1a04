"""Moves of memory: guests x links x carriers, beside QEMU's own `migrate` and `virsh migrate`.

    sudo .venv/bin/python bench/carriers.py [--check] [--quick]
    sudo .venv/bin/python bench/carriers.py --guest touch100 --link 1gbit --peer qemu virsh-postcopy

Every mover has one guest of its own in one lab: 1 GiB of RAM, 600 MiB of it in use, every page of
them filled before the first move, the half compressible. The guests take turns; whoever does not
move is paused, so that it takes no CPU. `touch100` and `touch400` write 8 bytes in each page of all
these 600 MiB, one after the other, 100 or 400 MiB of pages a second; `random60` writes whole pages
of random data. A guest that comes to less than its rate is reported with what it did.

A move that has not ended at the case's deadline is cancelled and counts as not finishing. Peers
that do not finish, or take more than 1.25 x the best in the first run, are not repeated (`--all`).
After every move the guest's own checksums prove its memory.

Prints tables and writes all moves as JSON to bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import figures
import libvirt
from goals import CASES, GUESTS, LINKS, Case, judge
from movers import QEMU, Mover, Sterna, Unfinished, Virsh, known_ways
from sterna.lab.console import GuestConsole
from sterna.lab.lab import Lab, Wanted, remove, undisturbed, up
from sterna.lab.links import Network
from sterna.lab.vm import MIB
from sterna.lab.witness import Witness
from wire import on_migration

MEMORY = 1024 * MIB
SETTLE_S = 2.0  # a guest beats and writes for so long before it moves: its work before
SWITCH_NS = 1_200_000_000  # before the end of a move: its last copy, and what tidying takes
FAR = 1.25  # x the best: not repeated
ORDER_S = 120.0  # filling or checking 600 MiB takes seconds under emulation
PEERS = (*QEMU.ways, *Virsh.ways)
Rows = dict[str, dict[str, Any]]


class Bench:
    """The movers and their guests, in one lab."""

    def __init__(self, lab: Lab, witness: Witness, ways: Iterable[str]) -> None:
        self._lab = lab
        self._witness = witness
        self._ours = Sterna(lab, MEMORY)
        everybody: tuple[Mover, ...] = (
            self._ours,
            QEMU(lab, MEMORY, self._ours),
            Virsh(lab, MEMORY, self._ours),
        )
        self._movers = [m for m in everybody if m is self._ours or set(ways) & set(m.ways)]
        self._load: dict[int, str] = {}
        self._link: str | None = ""

    async def start(self) -> None:
        """Boot all guests on the first host, one after the other, and pause them."""
        host = self._lab.hosts[0]
        for mover in self._movers:
            began = time.time_ns()
            await mover.boot(host)
            self._witness.wait_beat(began, mover.number)
            await mover.pause()
        self.facts = host.client.get("/v1/host")

    async def end(self) -> None:
        """What the lab would not end by itself, gently."""
        for mover in self._movers:
            if isinstance(mover, Virsh):
                mover.end()

    async def move(self, case: Case, way: str) -> dict[str, Any]:
        """One move of one mover's guest to the other host; memory is proven."""
        mover = next(m for m in self._movers if way in m.ways)
        if case.link != self._link:
            self._lab.shape(Network.MIGRATION, LINKS[case.link])
            self._link = case.link
        await mover.resume()
        await self._prepare(mover, case.guest)
        self._witness.wait_beat(time.time_ns() + round(SETTLE_S * 1e9), mover.number)
        source = mover.host
        target = next(host for host in self._lab.hosts if host is not source)
        noise, before, began = figures.Noise(), on_migration(source), time.time_ns()
        found: dict[str, Any] = {"way": way, "from": source.name, "to": target.name}
        try:
            found |= {"finished": True, **await mover.move(target, way, case.deadline_s)}
        except Unfinished as late:
            found |= {"finished": False, "done_after_s": late.done_after_s}
        except RuntimeError as error:
            found |= {"finished": False, "error": str(error)}
        ended = time.time_ns()
        found |= {"bytes_wire": on_migration(source) - before, **noise.so_far()}
        found |= self._work(mover.number, began, ended)
        if found["finished"]:
            felt = self._witness.felt(began, mover.number)
            if len(felt.boots) != 1 or felt.twins:
                raise RuntimeError(f"{way}: the guest rebooted or ran twice: {felt}")
            _, at = self._silence(mover.number, began)
            switch, _ = self._silence(mover.number, ended - SWITCH_NS)
            found |= {**asdict(felt), "felt_at_s": round((at - began) / 1e9, 3)}
            found["felt_switch_ms"] = round(switch / 1e6, 3)
        await self._verify(mover, way)
        await mover.pause()
        return found

    async def _prepare(self, mover: Mover, guest: str) -> None:
        """The workload of `guest`, its region filled: from then on it goes on by itself."""
        if self._load.get(mover.number) == guest:
            return
        async with GuestConsole(mover.console) as agent:
            await agent.ask(GUESTS[guest], timeout_s=ORDER_S)
        self._load[mover.number] = guest

    def _work(self, number: int, began: int, ended: int) -> dict[str, float]:
        """MB/s of pages that the guest wrote before the move, and during it."""
        self._witness.wait_beat(ended, number)
        return {
            "work_before_mb_s": self._pace(number, began - round(SETTLE_S * 1e9), began),
            "work_during_mb_s": self._pace(number, began, ended),
        }

    def _pace(self, number: int, start: int, end: int) -> float:
        beats = self._witness.beats(number)
        first, last = (bisect_left(beats, at, key=lambda beat: beat.t_ns) for at in (start, end))
        a, b = beats[first], beats[min(last, len(beats) - 1)]
        pages = b.mem_writes - a.mem_writes
        return round(pages * 4096 / max(1, b.t_ns - a.t_ns) * 1e3, 1)

    def _silence(self, number: int, since: int) -> tuple[int, int]:
        """The longest since then, and when it began. ns."""
        times = [beat.t_ns for beat in self._witness.beats(number) if beat.t_ns >= since]
        return max((b - a, a) for a, b in pairwise([since, *times]))

    async def _verify(self, mover: Mover, way: str) -> None:
        async with GuestConsole(mover.console) as agent:
            answer = await agent.ask("verify", timeout_s=ORDER_S)
        if answer["bad"] or not answer["good"]:
            raise RuntimeError(f"{way}: memory is damaged: {answer}")


async def measure(
    bench: Bench, cases: list[Case], options: argparse.Namespace, found: dict[str, Any]
) -> None:
    """All runs of all cases; `found` is filled as they end."""
    await bench.start()
    found["facts"] = bench.facts
    for case in cases:
        moves: dict[str, list[dict[str, Any]]] = {way: [] for way in chosen(case, options)}
        found["moves"][case.name] = moves
        print(f"\n{case.name}: not finishing after {case.deadline_s:g} s", flush=True)
        for run in range(options.runs):
            ways = [way for way in moves if not run or options.all or is_near(way, moves)]
            for way in ways if run % 2 == 0 else reversed(ways):
                moves[way].append(await bench.move(case, way))
                print(f"{run + 1:>3}/{options.runs}  {line(moves[way][-1])}", flush=True)
        found["cases"][case.name] = rows = {way: median(done) for way, done in moves.items()}
        found["kept"] |= {f"{case.name}: {k}": v for k, v in judge(case, rows, PEERS).items()}
        show(case, rows)


def chosen(case: Case, options: argparse.Namespace) -> list[str]:
    """Ways of this case, ours first."""
    peers = options.peer if options.peer is not None else case.peers or PEERS
    if options.quick and options.peer is None:
        peers = case.quick
    return [*options.carrier, *peers]


def is_near(way: str, moves: dict[str, list[dict[str, Any]]]) -> bool:
    """Ours, and the peers that may be the best when all is repeated."""
    done = {peer: m[0] for peer, m in moves.items() if peer in PEERS and m[0]["finished"]}
    best = min((move["total_s"] for move in done.values()), default=0.0)
    return way not in PEERS or (way in done and done[way]["total_s"] <= FAR * best)


def median(moves: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one way in one case. Those that did not finish have neither a total nor a pause."""
    finished = [move for move in moves if move["finished"]]
    row: dict[str, Any] = {"runs": len(moves), "finished": len(finished)}
    for key in ("total_s", "migrate_s", "felt_ms", "felt_switch_ms"):
        values = [move[key] for move in finished if key in move]
        row[key] = round(statistics.median(values), 3) if values else None
    for key in ("bytes_wire", "work_before_mb_s", "work_during_mb_s", "steal_percent"):
        row[key] = round(statistics.median(move[key] for move in moves), 1)
    ratios = [m["work_during_mb_s"] / m["work_before_mb_s"] for m in moves if m["work_before_mb_s"]]
    row["work_ratio"] = round(statistics.median(ratios), 3) if ratios else None
    for key, name in (("total_s", "forecast_total_percent"), ("pause_ms", "forecast_pause_ms")):
        errors = [told[key]["error"] for move in finished if (told := _forecast(move))]
        row[name] = round(statistics.median(errors), 1) if errors else None
    return row


def _forecast(move: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of one of ours: what was expected, what it was, and the error."""
    return move.get("report", {}).get("forecast") or {}


def line(move: dict[str, Any]) -> str:
    total = f"{move['total_s']:7.2f} s" if move["finished"] else " not done"
    felt = (
        f"felt {move['felt_ms']:6.0f} ms at {move['felt_at_s']:5.1f} s"
        if "felt_ms" in move
        else " " * 25
    )
    work = f"work {move['work_before_mb_s']:5.0f} -> {move['work_during_mb_s']:5.0f} MB/s"
    by = (
        f"  by {move['report']['carrier']}"
        if move.get("way") == "auto" and "report" in move
        else ""
    )
    why = f"  {move['error']}" if "error" in move else by
    return f"{move['way']:<20}{total}  {move['bytes_wire'] / 1e6:8.1f} MB  {felt}  {work}{why}"


def show(case: Case, rows: Rows) -> None:
    best = min((r["total_s"] for w, r in rows.items() if w in PEERS and r["total_s"]), default=0)
    print(f"\n{case.name:<22}{'total s':>9}{'migrate s':>11}{'to best':>9}{'felt ms':>9}{'switch':>8}"
          f"{'wire MB':>9}{'MB/s before':>13}{'during':>8}{'runs':>6}")  # fmt: skip
    for way, row in rows.items():
        ratio = row["total_s"] / best if row["total_s"] and best else None
        numbers = (row["total_s"], row["migrate_s"], ratio, row["felt_ms"], row["felt_switch_ms"])
        cells = (f"{'-' if n is None else format(n, '.2f' if i < 3 else '.0f'):>{width}}"
                 for i, (n, width) in enumerate(zip(numbers, (9, 11, 9, 9, 8), strict=True)))  # fmt: skip
        print(f"{way:<22}{''.join(cells)}{row['bytes_wire'] / 1e6:>9.1f}"
              f"{row['work_before_mb_s']:>13.0f}{row['work_during_mb_s']:>8.0f}"
              f"{row['finished']:>4}/{row['runs']}", flush=True)  # fmt: skip
    for way, row in rows.items():
        if row["forecast_total_percent"] is not None:
            print(f"{way}: total {row['forecast_total_percent']:+.0f} % off its forecast, "
                  f"pause {row['forecast_pause_ms']:+.0f} ms")  # fmt: skip


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Those of the table that were asked for; both named: every pair, in the table or not."""
    if options.guest and options.link:
        pairs = [(guest, link) for link in options.link for guest in options.guest]
        known = {(case.guest, case.link): case for case in CASES}
        return [known.get(pair) or Case(*pair) for pair in pairs]
    return [
        case
        for case in CASES
        if (not options.guest or case.guest in options.guest)
        and (not options.link or case.link in options.link)
        and (case.is_quick or not options.quick)
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guest", nargs="+", choices=tuple(GUESTS), help="default: the table's")
    parser.add_argument("--link", nargs="+", choices=tuple(LINKS), help="default: the table's")
    parser.add_argument("--peer", nargs="*", choices=PEERS, help="default: all")
    parser.add_argument(
        "--carrier", nargs="*", choices=Sterna.ways, default=["auto"], help="ours (auto)"
    )
    parser.add_argument("--runs", type=int, help="of each (3; with --quick 1)")
    parser.add_argument("--all", action="store_true", help="repeat the slow peers too")
    parser.add_argument("--quick", action="store_true", help="one run, the peers that matter")
    parser.add_argument("--accel", default="auto", help="auto, kvm or tcg (%(default)s)")
    parser.add_argument(
        "--json", type=Path, dest="output", help="default: bench/results/carriers-TIME.json"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal is missed")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 3)
    if missing := set(options.carrier) - set(known_ways()):
        parser.error(f"this version has no choice of a carrier: {', '.join(sorted(missing))}")
    return options


def main() -> int:
    options = arguments()
    cases = cases_of(options)
    ways = {way for case in cases for way in chosen(case, options)}
    if ways & set(Virsh.ways):
        libvirt.require()
    name = f"b{secrets.token_hex(4)}"
    began = time.monotonic()
    found: dict[str, Any] = {"facts": {}, "moves": {}, "cases": {}, "kept": {}}
    lab = up(Wanted(name=name, accel=options.accel, ends_with_us=True), print)
    try:
        with libvirt.Places(), Witness(lab) as witness:
            bench = Bench(lab, witness, ways)
            try:
                asyncio.run(measure(bench, cases, options, found))
            finally:
                asyncio.run(bench.end())
    finally:
        with undisturbed():
            remove(name)
        found["took_s"] = round(time.monotonic() - began, 1)
        facts = found.pop("facts")
        if facts:
            figures.write("carriers", facts, options, found)
    for promise, is_kept in found["kept"].items():
        print(f"{'kept' if is_kept else 'MISSED'}: {promise}")
    print(f"took {found['took_s']:g} s")
    return 1 if options.check and not all(found["kept"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
