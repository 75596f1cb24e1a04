"""A move over two migration networks: limits, channels side by side, and cables that are pulled.

    sudo .venv/bin/python bench/channels.py [--check] [--only limit pair cut all ...]

One guest, 1 GiB of RAM with 600 MiB of random data in it, goes to and fro between two hosts that
two networks of 500 Mbit/s each join (`--rate`), over the carrier `compression`. All figures are
from the counters of the source's network cards, read every 50 ms; rates are those of the memory
phase without its first and last half second.

| experiment | what is done, and what must be |
|---|---|
| one, pair | with one cable pulled beforehand, and with both: at least 1.8 x the rate |
| limit | 200 Mbit/s: within 5 % |
| cut | one cable pulled in mid-move, for good: it ends well, at the speed of the other |
| reserve, memory, disks | both cables pulled for 10 s in that phase: it ends well, with little more on the wire |
| grace | both pulled for longer than hosts wait: undone, the guest never stopped |

After every move the guest's own checksums prove its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import figures
import images
from movers import VM, known_ways
from sterna.lab.console import GuestConsole
from sterna.lab.hosts import GRACE_S, LOCAL_POOL, Host
from sterna.lab.lab import Lab, Wanted, remove, undisturbed, up
from sterna.lab.links import Network
from sterna.lab.vm import MIB, spec
from sterna.lab.witness import Witness
from wire import sent_by_card

MEMORY = 1024 * MIB
REGION_MB = 600
ORDER = f"mem size_mb={REGION_MB} rate_mb=0 pattern=random fill=random"
DISK = 512 * MIB  # of random data
LIMIT = 25_000_000  # bytes/s: 200 Mbit/s
OUTAGE_S = 10.0
MID = 150 * MIB  # on the wire: a quarter of the move
EDGE_S = 0.5  # of the memory phase, at each end: not yet, or no more, at full rate
PERIOD_S = 0.05
WAIT_S = 180.0
BOTH = (Network.MIGRATION, Network.MIGRATION2)
FASTER, NEAR, MORE_WIRE = 1.8, 0.05, 1.1  # what the project promises
NOT_STOPPED_MS = 1000  # a longer silence is a stop; a loaded machine makes shorter ones by itself


class Meter:
    """Bytes that a host has sent on its migration networks, over time, while the block runs."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.samples: list[tuple[float, int, str]] = []  # time, bytes since the start, phase
        self.phase = ""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._start = sum(sent_by_card(self._host).values())
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        self._thread.join()

    @property
    def sent(self) -> int:
        return self.samples[-1][1] if self.samples else 0

    def rate(self, start_s: float | None = None, end_s: float | None = None) -> float:
        """Bytes/s of the memory phase, between these times (monotonic) if they are given."""
        inside = [sample for sample in self.samples if sample[2] == "memory"]
        if not inside:
            return 0.0
        first = max(inside[0][0] + EDGE_S, start_s or 0)
        last = min(inside[-1][0] - EDGE_S, end_s or inside[-1][0])
        inside = [sample for sample in inside if first <= sample[0] <= last]
        if len(inside) < 2:
            return 0.0
        (t0, b0, _), (t1, b1, _) = inside[0], inside[-1]
        return (b1 - b0) / (t1 - t0)

    def _watch(self) -> None:
        while not self._ends.wait(PERIOD_S):
            now = time.monotonic()
            self.samples.append(
                (now, sum(sent_by_card(self._host).values()) - self._start, self.phase)
            )


class Bench:
    """One guest and its moves."""

    def __init__(self, lab: Lab, witness: Witness) -> None:
        self._lab = lab
        self._witness = witness
        self.host = lab.hosts[0]

    async def start(self) -> None:
        began = time.time_ns()
        body = spec(self._lab.guest(), VM, memory=MEMORY)
        await self._boot(body, began)

    async def start_with_disk(self) -> None:
        """The same guest anew, with a disk that travels."""
        client = self.host.client
        self._ended(client.post(f"/v1/vms/{VM}:stop", {"force": True}))
        client.delete(f"/v1/vms/{VM}")
        place = self.host.folder / "pool" / "disk.raw"
        images.make(place, size=images.LOG + DISK, allocated=DISK, image_format="raw")
        body = spec(self._lab.guest(), VM, memory=MEMORY)
        body["disks"] = [{"name": "vda", "pool": LOCAL_POOL, "volume": "disk.raw", "format": "raw"}]
        await self._boot(body, time.time_ns())

    async def _boot(self, body: dict[str, Any], began: int) -> None:
        client = self.host.client
        client.post("/v1/vms", body)
        client.post(f"/v1/vms/{VM}:start")
        self._witness.wait_beat(began)
        await self._ask(ORDER)
        self.facts = client.get("/v1/host")

    async def _ask(self, order: str) -> dict[str, Any]:
        console = Path(self.host.client.get(f"/v1/vms/{VM}")["console"])
        async with GuestConsole(console) as agent:
            return await agent.ask(order, timeout_s=120)

    def cut(self) -> None:
        for network in BOTH:
            self._lab.cut(self.host.name, network)

    def restore(self) -> None:
        for host in self._lab.hosts:
            for network in BOTH:
                self._lab.restore(host.name, network)

    async def move(
        self,
        during: Callable[[Meter, str], Awaitable[None]] | None = None,
        **wishes: Any,
    ) -> dict[str, Any]:
        """One move, with what `during` (given the operation's id) does meanwhile; proven memory."""
        target = next(host for host in self._lab.hosts if host is not self.host)
        if "compression" in known_ways():
            wishes.setdefault("carrier", "compression")
        client, began = self.host.client, time.time_ns()
        with Meter(self.host) as meter:
            operation = client.post(f"/v1/vms/{VM}/moves", {"target": target.name, **wishes})
            follow = asyncio.create_task(self._follow(meter, operation["id"]))
            if during is not None:
                await during(meter, operation["id"])
            operation = await follow
        took = (time.time_ns() - began) / 1e9
        is_moved = operation["state"] in ("succeeded", "warned")
        if is_moved:
            self.host = target
        felt = self._witness.felt(began)
        if len(felt.boots) != 1 or felt.twins:
            raise RuntimeError(f"the guest rebooted or ran twice: {felt}")
        answer = await self._ask("verify")
        if answer["bad"] or not answer["good"]:
            raise RuntimeError(f"memory is damaged: {answer}")
        return {
            "moved": is_moved,
            "total_s": round(took, 2),
            "rate": round(meter.rate()),
            "bytes_wire": meter.sent,
            "felt_ms": asdict(felt)["felt_ms"],
            "report": operation["result"] if is_moved else operation["error"],
            "meter": meter,
        }

    async def _follow(self, meter: Meter, operation: str) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            now = self.host.client.get(f"/v1/operations/{operation}")
            if now["state"] not in ("queued", "running", "cancelling"):
                return now  # type: ignore[no-any-return]
            meter.phase = now["phase"]
            await asyncio.sleep(PERIOD_S)
        raise RuntimeError(f"the move does not end: {now}")

    async def _until(self, meter: Meter, phase: str, sent: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while meter.phase != phase or meter.sent < sent:
            if time.monotonic() > deadline or meter.phase in ("handover", "tidy"):
                raise RuntimeError(f"the move has never been in {phase} with {sent} bytes sent")
            await asyncio.sleep(PERIOD_S)

    def _ended(self, operation: dict[str, Any]) -> None:
        while operation["state"] in ("queued", "running"):
            operation = self.host.client.get(f"/v1/operations/{operation['id']}", {"wait": 20})

    # ---- experiments: what was found, and whether it is as promised ---------------------------

    async def one(self) -> dict[str, Any]:
        self._lab.cut(self.host.name, Network.MIGRATION2)
        try:
            return await self.move()
        finally:
            self.restore()

    async def pair(self) -> dict[str, Any]:
        return await self.move()

    async def limit(self) -> dict[str, Any]:
        return await self.move(bandwidth=LIMIT)

    async def cut_one(self) -> dict[str, Any]:
        at: list[float] = []

        async def during(meter: Meter, _operation: str) -> None:
            await self._until(meter, "memory", MID)
            self._lab.cut(self.host.name, Network.MIGRATION2)
            at.append(time.monotonic())

        try:
            found = await self.move(during)
        finally:
            self.restore()
        meter: Meter = found["meter"]
        found["rate_before"] = round(meter.rate(end_s=at[0]))
        found["rate_after"] = round(meter.rate(start_s=at[0] + EDGE_S))
        return found

    async def outage(self, phase: str, seconds: float, sent: int = 0) -> dict[str, Any]:
        async def during(meter: Meter, _operation: str) -> None:
            if phase != "reserve":
                await self._until(meter, phase, sent)
                self.cut()
            await asyncio.sleep(seconds)
            self.restore()

        if phase == "reserve":
            self.cut()
        try:
            return await self.move(during)
        finally:
            self.restore()


class Course:
    """The experiments that were asked for, in an order in which later ones know of earlier ones."""

    def __init__(self, bench: Bench, only: list[str], found: dict[str, Any]) -> None:
        self._bench = bench
        self._only = only
        self._found = found
        self._moves: dict[str, dict[str, Any]] = found["moves"]
        self._kept: dict[str, bool] = found["kept"]

    async def run(self) -> None:
        await self._bench.start()
        self._found["facts"] = self._bench.facts
        steps = (self._pair, self._limit, self._cut, self._reserve, self._memory, self._grace)
        for step in (*steps, self._disks):
            if step.__name__.removeprefix("_") in self._only:
                await step()

    async def _pair(self) -> None:
        one = await self._move("one", self._bench.one())
        pair = await self._move("pair", self._bench.pair())
        ratio = pair["rate"] / max(1, one["rate"])
        self._kept[f"two channels carry {ratio:.2f} x one, at least {FASTER}"] = ratio >= FASTER

    async def _limit(self) -> None:
        ratio = (await self._move("limit", self._bench.limit()))["rate"] / LIMIT
        what = f"a limit of 200 Mbit/s: {ratio:.3f} x on the wire, within {NEAR:.0%}"
        self._kept[what] = abs(ratio - 1) <= NEAR

    async def _cut(self) -> None:
        cut = await self._move("cut", self._bench.cut_one())
        self._kept["one channel cut in mid-move: it ends well"] = cut["moved"]
        if one := self._moves.get("one"):
            ratio = cut["rate_after"] / max(1, one["rate"])
            self._kept[f"and goes on at {ratio:.2f} x one channel's rate, at least 0.8"] = (
                ratio >= 0.8
            )

    async def _reserve(self) -> None:
        await self._outage("reserve", 0)

    async def _memory(self) -> None:
        await self._outage("memory", MID)

    async def _disks(self) -> None:
        await self._bench.start_with_disk()
        await self._outage("disks", MID)

    async def _outage(self, phase: str, sent: int) -> None:
        lost = await self._move(phase, self._bench.outage(phase, OUTAGE_S, sent))
        self._kept[f"all cut for {OUTAGE_S:g} s in {phase}: it ends well"] = lost["moved"]
        whole = self._moves.get("pair")
        if whole and phase != "disks":
            ratio = lost["bytes_wire"] / whole["bytes_wire"]
            what = f"with {ratio:.3f} x the bytes on the wire, at most {MORE_WIRE} ({phase})"
            self._kept[what] = ratio <= MORE_WIRE

    async def _grace(self) -> None:
        lost = await self._move("grace", self._bench.outage("memory", GRACE_S + 20, MID))
        self._kept["all cut for longer than the grace: undone"] = not lost["moved"]
        felt = lost["felt_ms"]
        self._kept[f"and the guest never stopped: silent for {felt:.0f} ms"] = (
            felt <= NOT_STOPPED_MS
        )

    async def _move(self, name: str, experiment: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        one = self._moves[name] = await experiment
        one.pop("meter")
        end = "moved" if one["moved"] else f"not moved: {one['report']}"
        print(
            f"{name:<10}{one['total_s']:7.2f} s {one['rate'] * 8 / 1e6:6.0f} Mbit/s "
            f"{one['bytes_wire'] / 1e6:7.1f} MB  felt {one['felt_ms']:5.0f} ms  {end}",
            flush=True,
        )
        return one


EXPERIMENTS = ("pair", "limit", "cut", "reserve", "memory", "grace", "disks")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--rate", default="500mbit", help="of each network (%(default)s)")
    parser.add_argument("--accel", default="auto", help="auto, kvm or tcg (%(default)s)")
    parser.add_argument(
        "--json", type=Path, dest="output", help="default: bench/results/channels-TIME.json"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a promise is broken")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    name = f"b{secrets.token_hex(4)}"
    found: dict[str, Any] = {"facts": {}, "moves": {}, "kept": {}}
    wanted = Wanted(
        name=name, rate=options.rate, accel=options.accel, migrations=2, ends_with_us=True
    )
    lab = up(wanted, print)
    try:
        with Witness(lab) as witness:
            asyncio.run(Course(Bench(lab, witness), options.only, found).run())
    finally:
        with undisturbed():
            remove(name)
        if facts := found.pop("facts"):
            figures.write("channels", facts, options, found)
    for promise, is_kept in found["kept"].items():
        print(f"{'kept' if is_kept else 'BROKEN'}: {promise}")
    return 1 if options.check and not all(found["kept"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
