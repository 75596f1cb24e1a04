"""The demo: a guest that works and is watched goes from host to host and back.

Promises a verdict that does not take Sterna's word for it: the pause is measured by a client beside
the guest, the guest itself compares its memory with what it wrote, the machine's processes say
where the guest runs and how often, and a reboot is seen by the boot id in every beat.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sterna.client import Client
from sterna.errors import LabProofFailed, from_problem
from sterna.lab import netns, processes, record
from sterna.lab.console import GuestConsole
from sterna.lab.heartbeat import Felt
from sterna.lab.lab import Lab, Say, Wanted, find, remove, undisturbed, up
from sterna.lab.vm import Load, address, free_number, spec
from sterna.lab.witness import Witness
from sterna.units import format_duration

Follow = Callable[[Client, dict[str, Any]], dict[str, Any]]  # shows an operation until it ended
_VERIFY_S = 60.0  # the guest computes every page anew: 100 MB take 1 s under emulation
_DONE = ("succeeded", "warned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the demo does. A lab that is there already is used, and left as it was."""

    lab: str = "demo"
    rate: str | None = None
    keep: bool = False
    vm: str = "tern"
    route: tuple[str, ...] = ("hv-a", "hv-b", "hv-a")
    load: Load = field(default_factory=lambda: Load(memory_mb_s=50))


def is_there(lab: str) -> bool:
    return record.read(lab) is not None


@contextmanager
def demo_lab(options: Options, say: Say) -> Iterator[Lab]:
    """The lab for the demo, removed afterwards if it was made here, whatever happened."""
    if is_there(options.lab):
        say(f"using the lab {options.lab}, which is there already")
        yield find(options.lab)
        return
    wanted = Wanted(name=options.lab, rate=options.rate, ends_with_us=not options.keep)
    lab = up(wanted, say)
    try:
        yield lab
    finally:
        if options.keep:
            say(f"the lab is kept; remove it with: sterna lab down --name {options.lab}")
        else:
            with undisturbed():
                remove(options.lab)
            say("the lab is removed, and all that belonged to it")


class Demo:
    """One guest of a lab on its way. `move` may be called again and again."""

    def __init__(self, lab: Lab, witness: Witness, options: Options, say: Say) -> None:
        self._lab = lab
        self._witness = witness
        self._options = options
        self._say = say
        self._number = free_number(lab)
        self._boot = 0
        self._id = ""

    def start(self) -> None:
        """Create the guest on the first host of the route, start it, wait until it works."""
        options, host = self._options, self._lab[self._options.route[0]]
        began = time.time_ns()
        body = spec(self._lab.guest(), options.vm, self._number, load=options.load)
        self._id = host.client.post("/v1/vms", body)["id"]
        host.client.post(f"/v1/vms/{options.vm}:start")
        self._say(
            f"{options.vm} starts on {host.name}: 256 MiB, {address(self._number)}, dirties "
            f"{options.load.memory_mb_s} MB of memory a second"
        )
        first = self._witness.wait_beat(began, self._number)
        self._boot = first.boot_id
        asyncio.run(self._ask(self._console(host.name), "status"))
        seconds = (first.t_ns - began) / 1e9
        self._say(f"{options.vm} beats {format_duration(seconds)} after it was created")

    def move(self, source: str, target: str, follow: Follow) -> dict[str, Any]:
        """Move the guest, then measure and prove. Raises LabProofFailed, or why the move failed."""
        client = self._lab[source].client
        began = time.time_ns()
        operation = client.post(f"/v1/vms/{self._options.vm}/moves", {"target": target})
        ended = follow(client, operation)
        if ended["state"] not in _DONE:
            if ended.get("error"):
                raise from_problem(ended["error"])
            raise self._doubt(f"the move to {target} ended as {ended['state']}")
        felt = self._witness.felt(began, self._number)
        self._require_once(target)
        memory = asyncio.run(self._ask(self._console(target), "verify"))
        self._require_sound(felt, memory)
        if self._options.load.disk_blocks_s:
            self._require_disk(asyncio.run(self._ask(self._console(target), "diskverify")))
        report = ended["result"]
        return {
            **report,
            "from": source,
            "to": target,
            "felt_ms": round(felt.felt_ms, 1),
            "gap_ms": round(felt.gap_ms, 1),
            "lost_beats": felt.lost_beats,
            "duplicated_beats": felt.duplicated_beats,
            "memory_pages_good": memory["good"],
            "memory_pages_bad": memory["bad"],
        }

    def delete(self) -> None:
        """Take the guest away from wherever it is, if it was made here."""
        for host in self._lab.hosts:
            for view in host.client.get("/v1/vms"):
                if view["id"] != self._id:
                    continue
                if view["state"] != "off":
                    stop = host.client.post(f"/v1/vms/{self._id}:stop", {"force": True})
                    host.client.get(f"/v1/operations/{stop['id']}", {"wait": 20})
                host.client.delete(f"/v1/vms/{self._id}")

    def _console(self, host: str) -> Path:
        return Path(self._lab[host].client.get(f"/v1/vms/{self._options.vm}")["console"])

    async def _ask(self, console: Path, order: str) -> dict[str, Any]:
        async with GuestConsole(console) as guest:
            return await guest.ask(order, timeout_s=_VERIFY_S)

    def _require_once(self, target: str) -> None:
        """The daemons and the machine agree: it runs on `target`, and nowhere else."""
        name = self._options.vm
        running = [
            host.name
            for host in self._lab.hosts
            for view in host.client.get("/v1/vms")
            if view["name"] == name and view["state"] == "running"
        ]
        if running != [target]:
            raise self._doubt(f"it runs on {', '.join(running) or 'no host'}, not on {target}")
        emulators = {host.name: qemus(host.netns, name) for host in self._lab.hosts}
        if [host for host, pids in emulators.items() for _ in pids] != [target]:
            raise self._doubt(f"its QEMU processes are {emulators}")

    def _require_sound(self, felt: Felt, memory: dict[str, Any]) -> None:
        if felt.boots != (self._boot,):
            raise self._doubt(f"it booted again: {len(felt.boots)} boots were heard")
        if felt.twins:
            raise self._doubt(f"two of it ran at once: {felt.twins} beats came from a twin")
        if memory["bad"] or not memory["good"]:
            raise self._doubt(f"{memory['bad']} of {memory['pages']} pages of its memory are wrong")

    def _require_disk(self, disk: dict[str, Any]) -> None:
        if disk["bad"] or disk["missing"] or not disk["good"]:
            reason = f"{disk['bad']} blocks of its disk are wrong, {disk['missing']} are missing"
            raise self._doubt(reason)

    def _doubt(self, reason: str) -> LabProofFailed:
        return LabProofFailed(vm=self._options.vm, reason=reason, folder=self._lab.folder)


def qemus(namespace: str, vm: str) -> list[int]:
    """Processes in a host's namespace that are the QEMU of that VM."""
    found = []
    inode = netns.inode(namespace)
    for process in processes.in_namespaces({inode} if inode else set()):
        words = processes.command(process.pid)
        if any(word.startswith(f"guest={vm},") or word == f"guest={vm}" for word in words):
            found.append(process.pid)
    return found


def run(
    options: Options, say: Say, follow: Follow, told: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """The whole demo: a report for each move, also given to `told` as soon as it is there."""
    moves = []
    cleans = is_there(options.lab) and not options.keep  # else all of the lab goes, or nothing
    with demo_lab(options, say) as lab, Witness(lab) as witness:
        demo = Demo(lab, witness, options, say)
        try:
            demo.start()
            for source, target in itertools.pairwise(options.route):
                moves.append(demo.move(source, target, follow))
                told(moves[-1])
        finally:
            if cleans:
                with undisturbed():
                    demo.delete()
    return moves
