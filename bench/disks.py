"""Moves of a VM with its disk between hosts that share nothing, beside virsh and qemu-img.

    sudo .venv/bin/python bench/disks.py [--runs 1] [--rate 1gbit] [--size 8GiB] [--check]
    sudo .venv/bin/python bench/disks.py --memory

Two equal guests live in one lab in one run, each on a disk of its own that it writes to at a
steady rate: one is moved by Sterna, one by `virsh migrate --copy-storage-all` between two
libvirtd. They take turns, and whoever does not move is paused. `qemu-img convert` over NBD copies
the same data without a guest. The pause is what a client beside the guests heard, bytes on the
wire are the counters of the hosts' network cards, memory included. Afterwards each guest finds
every block that it was told is written. With --memory instead: what the daemons take.

Prints a table and writes all moves as JSON to bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import daemons
import figures
import images
import libvirt
from cpu import Cost
from sterna.host.bridges import bridge_name
from sterna.lab import record
from sterna.lab.console import GuestConsole
from sterna.lab.guest import wire
from sterna.lab.guest.image import cmdline
from sterna.lab.hosts import LOCAL_POOL, Host
from sterna.lab.lab import Lab, Wanted, remove, undisturbed, up
from sterna.lab.links import CLIENT_ADDRESS, PREFIX
from sterna.lab.vm import BEAT_PORT, MIB, address, spec
from sterna.lab.witness import Witness
from sterna.model import edge
from sterna.model.host import Switch
from sterna.units import parse_size

SETTLE_NS = 3_000_000_000  # a guest writes for so long before it moves
OURS, THEIRS = 0, 1  # numbers of the two guests
VM, DISK, PEER = "tern", "vda", "peer"
MORE_WIRE = 1.03  # what the project promises, here and below
SHORTER = 0.9
MORE_ALLOCATED = 1.05


class Bench:
    """Two guests in a lab, one moved by Sterna, one by virsh."""

    def __init__(self, lab: Lab, witness: Witness, options: argparse.Namespace) -> None:
        self._lab = lab
        self._witness = witness
        self._options = options
        self._master = lab.folder / "master"
        self._peers = set(options.peers)
        self._libvirtds = {host.name: libvirt.Libvirtd(lab, host) for host in lab.hosts}

    async def start(self) -> None:
        """Make the disks, boot both guests on the first host, and pause them."""
        options, host = self._options, self._lab.hosts[0]
        self._file = f"disk.{options.format}"
        print(f"making a disk of {options.size >> 20} MiB with {options.allocated >> 20} of data")
        images.make(
            self._master,
            size=options.size,
            allocated=options.allocated,
            image_format=options.format,
        )
        self.facts = host.client.get("/v1/host")
        images.copy(self._master, self._ours(host.name))
        began = time.time_ns()
        host.client.post("/v1/vms", self._body(OURS))
        view = host.client.post(f"/v1/vms/{VM}:start")
        self._witness.wait_beat(began, OURS)
        host.client.post(f"/v1/vms/{VM}:pause")
        if "virsh" in self._peers:
            await asyncio.to_thread(self._start_theirs, host, view)

    def _body(self, number: int) -> dict[str, Any]:
        """The lab's guest, with a disk that is there already."""
        options = self._options
        blocks = round(options.write * 1e6 / wire.BLOCK_BYTES)
        line = cmdline(
            ip=f"{address(number)}/{PREFIX}",
            client=f"{CLIENT_ADDRESS}:{BEAT_PORT}",
            disk=f"{blocks}:{images.LOG // MIB}:1:{options.burst}",
        )
        body = spec(self._lab.guest(), VM, number, memory=options.ram)
        body["boot"]["cmdline"] = line
        body["disks"] = [
            {"name": DISK, "pool": LOCAL_POOL, "volume": self._file, "format": options.format}
        ]
        return body

    def _start_theirs(self, host: Host, view: dict[str, Any]) -> None:
        """The same machine: what Sterna chose for its own guest is told to libvirt."""
        options, body = self._options, self._body(THEIRS)
        words = Path(f"/proc/{view['process']['pid']}/cmdline").read_text().split("\0")
        switch = next(s["switch"] for s in self.facts["switches"])
        self._domain = libvirt.Domain(
            name=PEER,
            memory=options.ram,
            kernel=body["boot"]["kernel"],
            initrd=body["boot"]["initrd"],
            cmdline=body["boot"]["cmdline"],
            machine=view["spec"]["machine"],
            accel=view["process"]["accel"],
            cpu=words[words.index("-cpu") + 1],
            binary=words[0],
            disk_format=options.format,
            disk_file=self._file,
            bridge=bridge_name(edge.parse(Switch, switch, "switch")),
        )
        print("starting libvirtd on both hosts")
        for one in self._libvirtds.values():
            one.start()
        for one in self._libvirtds.values():
            one.wait_ready()
        images.copy(self._master, self._theirs(host.name))
        began = time.time_ns()
        self._libvirtds[host.name].create(self._domain.xml())
        self._witness.wait_beat(began, THEIRS)
        self._libvirtds[host.name].suspend(PEER)

    def _ours(self, host: str) -> Path:
        return self._lab[host].folder / "pool" / self._file

    def _theirs(self, host: str) -> Path:
        return self._libvirtds[host].images / self._file

    async def move_ours(self, source: str, target: str) -> dict[str, Any]:
        client = self._lab[source].client
        images.forget([self._ours(source)])
        client.post(f"/v1/vms/{VM}:resume")
        before = self._before(source, OURS, self._ours(source))
        with Cost(self._lab.hosts) as cost:
            operation = client.post(f"/v1/vms/{VM}/moves", {"target": target})
            while operation["state"] in ("queued", "running"):
                operation = client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
            took = time.monotonic() - before["at"]
        if operation["state"] not in ("succeeded", "warned"):
            raise RuntimeError(f"the move failed: {operation['error']}")
        found = self._after(source, OURS, before, took)
        self._lab[target].client.post(f"/v1/vms/{VM}:pause")
        result = operation["result"]
        return {
            "from": source,
            "to": target,
            **found,
            "cpu_s": cost.seconds,
            "target_allocated": images.allocation(self._ours(target)),
            "bytes_memory_wire": result["bytes_wire"] - result.get("bytes_disks", 0),
            "report": result,
        }

    async def move_theirs(self, source: str, target: str) -> dict[str, Any]:
        here, there = self._libvirtds[source], self._libvirtds[target]
        disk = self._theirs(target)
        images.make_empty(disk, size=self._options.size, image_format=self._options.format)
        images.forget([self._theirs(source)])
        here.resume(PEER)
        before = self._before(source, THEIRS, self._theirs(source))
        with Cost(self._lab.hosts) as cost:
            await asyncio.to_thread(here.migrate, PEER, there, "--copy-storage-all")
            took = time.monotonic() - before["at"]
        found = self._after(source, THEIRS, before, took)
        there.suspend(PEER)
        job = there.job(PEER)
        self._theirs(source).unlink()
        return {
            "from": source,
            "to": target,
            **found,
            "cpu_s": cost.seconds,
            "target_allocated": images.allocation(disk),
            "bytes_memory_wire": int(job.get("memory_processed", 0)),
            "report": job,
        }

    async def convert(self, source: str, target: str) -> dict[str, Any]:
        return await asyncio.to_thread(
            images.convert,
            self._lab[source],
            self._lab[target],
            self._master,
            size=self._options.size,
            image_format=self._options.format,
        )

    def _before(self, source: str, number: int, disk: Path) -> dict[str, Any]:
        beat = self._witness.wait_beat(time.time_ns() + SETTLE_NS, number)
        return {
            "beat": beat,
            "durable": beat.durable[DISK],
            "allocated": images.allocation(disk),
            "wire": images.on_wire(self._lab[source]),
            "at": time.monotonic(),
        }

    def _after(
        self, source: str, number: int, before: dict[str, Any], took: float
    ) -> dict[str, Any]:
        """What was felt and counted. What the guest writes once it is there is not its move's."""
        wire_now = images.on_wire(self._lab[source])
        beat = self._witness.wait_beat(time.time_ns(), number)
        felt = self._witness.felt(before["beat"].t_ns, number)
        if len(felt.boots) != 1 or felt.twins:
            raise RuntimeError(f"guest {number} rebooted or ran twice: {felt}")
        written = (beat.durable[DISK] - before["durable"]) * wire.BLOCK_BYTES
        return {
            "total_s": round(took, 3),
            **asdict(felt),
            "bytes_wire": wire_now - before["wire"],
            "allocated": before["allocated"],
            "written": written,
            "written_mb_s": round(written / took / 1e6, 1),
        }

    async def verify(self, host: str) -> dict[str, Any]:
        """Each guest's disk has all that it was told is written. What the guests answered."""
        answers = {}
        client = self._lab[host].client
        view = client.post(f"/v1/vms/{VM}:resume")
        consoles = {"sterna": Path(view["console"])}
        if "virsh" in self._peers:
            self._libvirtds[host].resume(PEER)
            consoles["virsh"] = self._libvirtds[host].console
        for who, console in consoles.items():
            async with GuestConsole(console) as agent:
                await agent.ask("disk off", timeout_s=60)
                answer = await agent.ask("diskverify", timeout_s=120)
            log = answer["disks"][DISK]
            if log["bad"] or log["missing"] or log["highest"] < log["durable"]:
                raise RuntimeError(f"{who}: blocks are damaged or missing: {answer}")
            answers[who] = log
        return answers

    def end(self) -> None:
        """What the lab would not end by itself, gently."""
        for one in self._libvirtds.values():
            one.stop()


Moves = dict[str, list[dict[str, Any]]]


async def measure(bench: Bench, options: argparse.Namespace) -> Moves:
    """`runs` of each, there and back; who begins changes from run to run."""
    await bench.start()
    steps = {"sterna": bench.move_ours}
    if "virsh" in options.peers:
        steps["virsh"] = bench.move_theirs
    if "qemu-img" in options.peers:
        steps["qemu-img"] = bench.convert
    moves: Moves = {who: [] for who in steps}
    source, target = "hv-a", "hv-b"
    for number in range(options.runs):
        order = list(steps) if number % 2 == 0 else list(reversed(steps))
        for who in order:
            found = await steps[who](source, target)
            moves[who].append(found)
            felt = f", felt {found['felt_ms']:5.0f} ms" if "felt_ms" in found else ""
            print(
                f"{number + 1:>3}/{options.runs}  {source} to {target} by {who:<8} "
                f"{found['total_s']:7.2f} s, {found['bytes_wire'] / 1e6:7.0f} MB{felt}",
                flush=True,
            )
        source, target = target, source
    print(f"every block is there: {await bench.verify(source)}")
    return moves


def summary(moves: Moves) -> dict[str, Any]:
    """Medians, their ratio, and whether the project's promises hold."""
    rows: dict[str, dict[str, Any]] = {}
    for who, done in moves.items():
        for move in done:
            carried = move["allocated"] + move.get("written", 0)
            disks = move["bytes_wire"] - move.get("bytes_memory_wire", 0)
            move["wire_ratio"] = round(disks / carried, 4)
            move["allocated_ratio"] = round(
                move["target_allocated"] / (move["allocated"] + move.get("written", 0)), 4
            )
        for key in KEYS:
            values = [move[key] for move in done if key in move]
            if values:
                rows.setdefault(key, {})[who] = statistics.median(values)
    for row in rows.values():
        if row.get("virsh"):
            row["ratio"] = round(row["sterna"] / row["virsh"], 3)
    kept = {
        f"bytes on the wire for disks at most {MORE_WIRE} x (allocated + written)": rows[
            "wire_ratio"
        ]["sterna"]
        <= MORE_WIRE,
        f"target takes at most {MORE_ALLOCATED} x what the source takes": rows["allocated_ratio"][
            "sterna"
        ]
        <= MORE_ALLOCATED,
    }
    if "virsh" in moves:
        kept |= {
            f"total at most {SHORTER} x virsh's": rows["total_s"]["ratio"] <= SHORTER,
            "felt pause at most virsh's": rows["felt_ms"]["ratio"] <= 1,
        }
    return {"medians": rows, "kept": kept}


KEYS = (
    "total_s",
    "felt_ms",
    "cpu_s",
    "bytes_wire",
    "bytes_memory_wire",
    "allocated",
    "written",
    "written_mb_s",
    "wire_ratio",
    "target_allocated",
    "allocated_ratio",
)


def show(found: dict[str, Any], whos: list[str]) -> None:
    print(f"\n{'median of':<18}" + "".join(f"{who:>14}" for who in [*whos, "to virsh"]))
    for key, row in found["medians"].items():
        numbers = [row.get(who) for who in [*whos, "ratio"]]
        print(f"{key:<18}" + "".join(f"{'-' if n is None else f'{n:.10g}':>14}" for n in numbers))
    for promise, is_kept in found["kept"].items():
        print(f"{'kept' if is_kept else 'BROKEN'}: {promise}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1, help="moves of each (%(default)s)")
    parser.add_argument("--rate", default="1gbit", help="migration network, or none (%(default)s)")
    parser.add_argument("--size", type=parse_size, default="8GiB", help="of the disk (%(default)s)")
    parser.add_argument(
        "--allocated", type=parse_size, default="2GiB", help="of it, random data (%(default)s)"
    )
    parser.add_argument("--format", default="qcow2", choices=("qcow2", "raw"), help="(%(default)s)")
    parser.add_argument("--write", type=float, default=20, help="MB/s to the disk (%(default)s)")
    parser.add_argument("--burst", type=int, default=64, help="4 KiB blocks a write (%(default)s)")
    parser.add_argument("--ram", type=parse_size, default="256MiB", help="of a guest (%(default)s)")
    parser.add_argument(
        "--peers", nargs="*", default=["virsh", "qemu-img"], choices=("virsh", "qemu-img")
    )
    parser.add_argument("--memory", action="store_true", help="what the daemons take, instead")
    parser.add_argument("--accel", default="auto", help="auto, kvm or tcg (%(default)s)")
    parser.add_argument(
        "--json", type=Path, dest="output", help="default: bench/results/disks-TIME.json"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a promise is broken")
    return parser.parse_args()


async def compare(lab: Lab, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of a host, and all that was found."""
    with libvirt.Places(), Witness(lab) as witness:
        bench = Bench(lab, witness, options)
        try:
            moves = await measure(bench, options)
        finally:
            bench.end()
    found = summary(moves)
    show(found, list(moves))
    return bench.facts, {**found, "moves": moves}


def main() -> int:
    options = arguments()
    if not options.memory and "virsh" in options.peers:
        libvirt.require()
    images.require_disk(record.root(), 8 * options.allocated)
    name = f"b{secrets.token_hex(4)}"
    rate = None if options.rate == "none" else options.rate
    lab = up(Wanted(name=name, rate=rate, accel=options.accel, ends_with_us=True), print)
    try:
        if options.memory:
            facts, found = daemons.measure(lab)
        else:
            facts, found = asyncio.run(compare(lab, options))
    finally:
        with undisturbed():
            remove(name)
    figures.write("daemons" if options.memory else "disks", facts, options, found)
    return 1 if options.check and not all(found["kept"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
