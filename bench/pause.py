"""Felt pause and duration of moves by Sterna, beside QEMU's own bare `migrate` of the same guest.

    sudo .venv/bin/python bench/pause.py [--moves 10] [--rate 1gbit] [--touch 50] [--check]

Both guests live in one lab in one run and move in turn, first the one, then the other; whoever
does not move is paused, so that it takes no CPU from the other. The pause is what a client beside
the guests heard. Prints a table and writes all moves as JSON to bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import time
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import figures
from bare import Bare, machine_like
from sterna.lab.console import GuestConsole
from sterna.lab.lab import Lab, Wanted, remove, undisturbed, up
from sterna.lab.vm import MIB, Load, spec
from sterna.lab.witness import Witness
from sterna.units import parse_size

UNLIMITED = 16 << 30  # bytes/s: Sterna's value for a move without a limit
SETTLE_NS = 1_000_000_000  # a guest beats and writes for so long before it moves
FELT_LIMIT_MS, FELT_MORE_MS, TOTAL_MORE_S = 300, 50, 1.0  # what the project promises
OURS, THEIRS = 0, 1  # numbers of the two guests
VM = "tern"


class Bench:
    """Two guests in a lab, one moved by Sterna, one by QEMU alone."""

    def __init__(self, lab: Lab, witness: Witness, options: argparse.Namespace) -> None:
        self._lab = lab
        self._witness = witness
        self._options = options
        self._load = Load(memory_mb_s=options.touch, memory_mb=options.hot)

    async def start(self) -> None:
        """Boot both on the first host, ours by Sterna, theirs with the same command line."""
        host, guest = self._lab.hosts[0], self._lab.guest()
        body = spec(guest, VM, OURS, memory=self._options.memory, load=self._load)
        theirs = spec(guest, VM, THEIRS, memory=self._options.memory, load=self._load)
        began = time.time_ns()
        host.client.post("/v1/vms", body)
        view = host.client.post(f"/v1/vms/{VM}:start")
        self.facts = host.client.get("/v1/host")
        machine = machine_like(
            view,
            self.facts,
            theirs["boot"]["cmdline"],
            max_bandwidth=self._options.bandwidth or UNLIMITED,
            downtime_ms=self._options.qemu_downtime or self._options.max_downtime,
        )
        self.bare = Bare(self._lab, machine)
        await self.bare.boot(host)
        for number in (OURS, THEIRS):
            self._witness.wait_beat(began, number)
        host.client.post(f"/v1/vms/{VM}:pause")
        await self.bare.pause()

    async def move_ours(self, source: str, target: str) -> dict[str, Any]:
        client = self._lab[source].client
        client.post(f"/v1/vms/{VM}:resume")
        began = self._settled(OURS)
        wishes = {"target": target, "max_downtime_ms": self._options.max_downtime}
        if self._options.bandwidth:
            wishes["bandwidth"] = self._options.bandwidth
        operation = client.post(f"/v1/vms/{VM}/moves", wishes)
        while operation["state"] in ("queued", "running"):
            operation = client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
        if operation["state"] not in ("succeeded", "warned"):
            raise RuntimeError(f"the move failed: {operation['error']}")
        felt = self._felt(began, OURS)
        self._lab[target].client.post(f"/v1/vms/{VM}:pause")
        return {**operation["result"], **felt}

    async def move_theirs(self, target: str) -> dict[str, Any]:
        await self.bare.resume()
        began = self._settled(THEIRS)
        report = await self.bare.move(self._lab[target])
        felt = self._felt(began, THEIRS)
        await self.bare.pause()
        return {**report, **felt}

    async def verify(self, host: str) -> None:
        """Both guests' memory is what they wrote."""
        client = self._lab[host].client
        view = client.post(f"/v1/vms/{VM}:resume")
        await self.bare.resume()
        for console in (Path(view["console"]), self.bare.console):
            async with GuestConsole(console) as agent:
                answer = await agent.ask("verify", timeout_s=120)
            if answer["bad"] or not answer["good"]:
                raise RuntimeError(f"memory is damaged: {answer}")

    def _settled(self, number: int) -> int:
        self._witness.wait_beat(time.time_ns() + SETTLE_NS, number)
        return time.time_ns()

    def _felt(self, began: int, number: int) -> dict[str, Any]:
        felt = self._witness.felt(began, number)
        if len(felt.boots) != 1 or felt.twins:
            raise RuntimeError(f"guest {number} rebooted or ran twice: {felt}")
        return asdict(felt)


async def measure(bench: Bench, moves: int) -> dict[str, list[dict[str, Any]]]:
    """`moves` of each, in turn."""
    await bench.start()
    ours, theirs = [], []
    source = "hv-a"
    for number, target in zip(range(moves), cycle(("hv-b", "hv-a")), strict=False):
        ours.append(await bench.move_ours(source, target))
        theirs.append(await bench.move_theirs(target))
        print(
            f"{number + 1:>3}/{moves}  {source} to {target}   felt {ours[-1]['felt_ms']:6.0f} ms by "
            f"Sterna, {theirs[-1]['felt_ms']:6.0f} ms by QEMU   total {ours[-1]['total_s']:5.2f} s, "
            f"{theirs[-1]['total_s']:5.2f} s",
            flush=True,
        )
        source = target
    await bench.verify(source)
    await bench.bare.end()
    return {"sterna": ours, "qemu": theirs}


def summary(moves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, their difference and ratio, and whether the project's promises hold."""
    rows: dict[str, Any] = {}
    for key in ("felt_ms", "pause_ms", "total_s", "lost_beats", "bytes_wire", "rounds"):
        ours, theirs = (statistics.median(m[key] for m in moves[who]) for who in ("sterna", "qemu"))
        rows[key] = {
            "sterna": ours,
            "qemu": theirs,
            "difference": round(ours - theirs, 3),
            "ratio": round(ours / theirs, 3) if theirs else None,
            "sterna_worst": max(m[key] for m in moves["sterna"]),
            "qemu_worst": max(m[key] for m in moves["qemu"]),
        }
    kept = {
        f"median felt pause under {FELT_LIMIT_MS} ms": rows["felt_ms"]["sterna"] < FELT_LIMIT_MS,
        f"felt pause at most {FELT_MORE_MS} ms longer than QEMU's": rows["felt_ms"]["difference"]
        <= FELT_MORE_MS,
        f"total at most {TOTAL_MORE_S:g} s longer than QEMU's": rows["total_s"]["difference"]
        <= TOTAL_MORE_S,
    }
    return {"medians": rows, "kept": kept}


def show(found: dict[str, Any]) -> None:
    print(f"\n{'median of':<14}{'Sterna':>12}{'QEMU':>12}{'difference':>12}{'ratio':>8}"
          f"{'worst':>12}{'of QEMU':>12}")  # fmt: skip
    for key, row in found["medians"].items():
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        numbers = [row[k] for k in ("sterna", "qemu", "difference")]
        worst = [row[k] for k in ("sterna_worst", "qemu_worst")]
        print(f"{key:<14}{''.join(f'{n:>12.10g}' for n in numbers)}{ratio:>8}"
              f"{''.join(f'{n:>12.10g}' for n in worst)}")  # fmt: skip
    for promise, is_kept in found["kept"].items():
        print(f"{'kept' if is_kept else 'BROKEN'}: {promise}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moves", type=int, default=10, help="of each (%(default)s)")
    parser.add_argument("--rate", default="1gbit", help="migration network, or none (%(default)s)")
    parser.add_argument("--memory", type=parse_size, default=256 * MIB, help="of a guest (256MiB)")
    parser.add_argument("--touch", type=int, default=50, help="MB/s dirtied (%(default)s)")
    parser.add_argument("--hot", type=int, default=100, help="MB that are dirtied (%(default)s)")
    parser.add_argument("--max-downtime", type=int, default=300, help="ms (%(default)s)")
    parser.add_argument("--qemu-downtime", type=int, help="ms, of QEMU alone; default: the same")
    parser.add_argument("--bandwidth", type=parse_size, help="bytes/s; default: no limit")
    parser.add_argument("--accel", default="auto", help="auto, kvm or tcg (%(default)s)")
    parser.add_argument("--output", type=Path, help="default: bench/results/pause-TIME.json")
    parser.add_argument("--check", action="store_true", help="exit 1 if a promise is broken")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    name = f"b{secrets.token_hex(4)}"
    rate = None if options.rate == "none" else options.rate
    lab = up(Wanted(name=name, rate=rate, accel=options.accel, ends_with_us=True), print)
    try:
        with Witness(lab) as witness:
            bench = Bench(lab, witness, options)
            moves = asyncio.run(measure(bench, options.moves))
    finally:
        with undisturbed():
            remove(name)
    found = summary(moves)
    show(found)
    figures.write("pause", bench.facts, options, {**found, "moves": moves})
    return 1 if options.check and not all(found["kept"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
