"""A lab whose hosts can be made to fail at a named point, and what must be true of it afterwards.

Two hosts that share nothing: each has a pool `local` and a pool `spare`, file systems of their own
that can be filled up. The daemons are those of `holding.py`, with `unreadable.c` preloaded. One
guest writes its memory and both of its disks, one qcow2 and one raw.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import holding

from moving import Traveller, wait_until
from sterna.errors import SternaError
from sterna.lab import demo, heartbeat, netns, processes
from sterna.lab import hosts as lab_hosts
from sterna.lab.disklog import check
from sterna.lab.hosts import LOCAL_POOL, Host
from sterna.lab.lab import Lab, Wanted, leftovers, remove, up
from sterna.lab.links import Network
from sterna.lab.vm import Load
from sterna.lab.witness import Witness

HERE = Path(__file__).parent
SPARE_POOL = "spare"
FOLDERS = {LOCAL_POOL: "pool", SPARE_POOL: "spare"}
POOL_BYTES = 400 << 20
FILLER = "filler"
# Not the VM's: parts of files are kept for a second try, until they are old.
OWN = {".sterna-pool.json", ".sterna-parts", FILLER}
RATE = 60  # blocks a second to each disk
LOAD = Load(
    memory_mb_s=8,
    memory_mb=16,
    disk_blocks_s=RATE,
    disks=2,
    pool=LOCAL_POOL,
    formats=("qcow2", "raw"),
)
OLD = 12_000  # blocks; beyond 16384 the guest writes nothing new any more, and needs no new room
SETTLE_S = 120.0  # beyond all the deadlines of a move, one after the other
CLEAR_S = 60.0  # twice the lease of a reservation
FINAL = {"succeeded", "warned", "failed", "cancelled", "partial"}
UNLIKELY = ("shared", LOCAL_POOL, SPARE_POOL)


class Bad(Exception):
    """What must never be."""


@dataclass
class Ended:
    """How the operation of a cell ended, and where the guest is then."""

    state: str = ""
    said: str = ""
    owner: str = ""
    guest: str = ""
    was_unknown: bool = False
    notes: list[str] = field(default_factory=list)


def build_shim(folder: Path) -> Path:
    made = folder / "unreadable.so"
    argv = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(made), str(HERE / "unreadable.c"), "-ldl"]
    subprocess.run(argv, check=True)
    return made


@contextlib.contextmanager
def faulty_daemons() -> Iterator[None]:
    """Labs made and daemons started within the block are of this kind."""
    daemon, prepare = lab_hosts._daemon, Host.prepare
    with tempfile.TemporaryDirectory(prefix="sterna-faults-") as folder:
        shim = build_shim(Path(folder))

        def faulty() -> list[str]:
            preload = f"LD_PRELOAD={shim}"
            return ["env", preload, sys.executable, str(HERE / "holding.py")]

        def prepared(host: Host) -> None:
            prepare(host)
            for name in FOLDERS.values():
                place = host.folder / name
                place.mkdir(mode=0o700, exist_ok=True)
                options = f"size={POOL_BYTES},mode=700"
                subprocess.run(["mount", "-t", "tmpfs", "-o", options, "pool", place], check=True)

        lab_hosts._daemon, Host.prepare = faulty, prepared
        try:
            yield
        finally:
            lab_hosts._daemon, Host.prepare = daemon, prepare


class Stage:
    """One lab, one guest, on `home`. Made anew by its user when something is left of a cell."""

    def __init__(self) -> None:
        accel = os.environ.get("STERNA_LAB_ACCEL", "auto")
        name = f"f{secrets.token_hex(4)}"
        self.lab = up(Wanted(name=name, accel=accel, ends_with_us=True))
        for host in self.lab.hosts:
            path = str(host.folder / FOLDERS[SPARE_POOL])
            host.client.post("/v1/pools", {"name": SPARE_POOL, "path": path})
        self.witness = Witness(self.lab).__enter__()
        self.guest = Traveller(self.lab, self.witness, LOAD)
        self.home, self.other = self.lab.hosts
        self.lives = False
        self.durable: dict[str, int] = {}  # of a guest that was powered off
        self.slowest_ms = 0  # of the guest's writes since the cell before
        self.sockets = {host.name: self._sockets(host) for host in self.lab.hosts}

    def close(self) -> None:
        self.witness.__exit__(None, None, None)
        with contextlib.suppress(SternaError):
            remove(self.lab.name)
        if left := leftovers(self.lab.name):
            raise Bad(f"the lab left {left}")

    # ---- the guest ---------------------------------------------------------------------------

    def ready(self, *, running: bool) -> None:
        """A guest that is young enough, on `home`, running or off; nothing else anywhere."""
        if self.lives and self._written() > OLD:
            self._delete()
        if not self.lives:
            self.home, self.other = self.lab.hosts
            self.guest.begin()
            self.lives, self.durable = True, {}
        state = self.view(self.home)["state"]
        if running and state == "off":
            self._start()
        if not running and state == "running":
            self.durable = self._durable_now()
            self.guest.power_off(self.home)
        if not running and not self.durable:  # its QEMU was killed in the cell before
            self.durable = self.last_told()
        for host in self.lab.hosts:
            for name in (holding.FAULT, holding.HELD, holding.UNREADABLE):
                (host.folder / name).unlink(missing_ok=True)
            for pool in FOLDERS:  # a move that finds all of it there sends nothing
                shutil.rmtree(self.pool(host, pool) / ".sterna-parts", ignore_errors=True)

    def _start(self) -> None:
        began, self.durable = time.time_ns(), {}
        self.home.client.post("/v1/vms/tern:start")
        self.guest.boot = self.witness.wait_beat(began).boot_id
        self.guest.ask(self.home, "status")

    def _delete(self) -> None:
        if self.view(self.home)["state"] != "off":
            stop = self.home.client.post("/v1/vms/tern:stop", {"force": True})
            self.guest.ended(self.home, stop)
        self.home.client.delete("/v1/vms/tern")
        self.lives = False

    def _written(self) -> int:
        beats = self.witness.beats()
        return max(beats[-1].durable.values()) if beats else 0

    def view(self, host: Host) -> dict[str, Any]:
        return dict(host.client.get("/v1/vms/tern"))

    def qemu(self, host: Host) -> int | None:
        pids = demo.qemus(host.netns, "tern")
        return pids[0] if pids else None

    # ---- faults ------------------------------------------------------------------------------

    def arm(self, host: Host, point: str, act: str) -> None:
        new = host.folder / "fault.new"
        new.write_text(f"{point} {act}")
        new.replace(host.folder / holding.FAULT)

    def is_armed(self, host: Host) -> bool:
        return (host.folder / holding.FAULT).exists()

    def is_held(self, host: Host) -> bool:
        return (host.folder / holding.HELD).exists()

    def release(self, host: Host) -> None:
        (host.folder / holding.HELD).unlink(missing_ok=True)

    def pool(self, host: Host, name: str) -> Path:
        return host.folder / FOLDERS[name]

    def fill(self, pool: Path) -> None:
        """Until not a byte is left."""
        with (pool / FILLER).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\xff" * (1 << 16))

    def drain(self, pool: Path) -> None:
        (pool / FILLER).unlink(missing_ok=True)

    def spoil(self, host: Host, pool: str) -> None:
        (host.folder / holding.UNREADABLE).write_text(f"{self.pool(host, pool)}/tern-\n")

    def mend(self, host: Host) -> None:
        (host.folder / holding.UNREADABLE).unlink(missing_ok=True)

    def cut(self, host: Host) -> None:
        for network in (Network.MANAGEMENT, Network.MIGRATION):
            self.lab.cut(host.name, network)

    def join(self, host: Host) -> None:
        for network in (Network.MANAGEMENT, Network.MIGRATION):
            self.lab.restore(host.name, network)

    def revive(self, host: Host) -> None:
        self.release(host)
        wait_until(lambda: host.process is None, f"the daemon of {host.name} is dead")
        host.start()
        host.wait_ready()

    # ---- what must be true -------------------------------------------------------------------

    def settle(self, source: Host, operation: str, ended: Ended, *, patient: bool) -> None:
        """Until the operation has ended; or is unknown, if nobody is `patient`."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            with contextlib.suppress(SternaError):
                found = source.client.get(f"/v1/operations/{operation}")
                ended.state = found["state"]
                ended.was_unknown |= ended.state == "unknown"
                error = found["error"] or {}
                ended.said = error.get("title") or (found["result"] or {}).get("text", "")
                if ended.state in FINAL:
                    break
                if ended.state == "unknown" and not patient:
                    return
            if time.monotonic() > deadline:
                raise Bad(f"the operation is {ended.state or 'not to be had'} after {SETTLE_S:g} s")
            time.sleep(0.05)
        if ended.state in ("failed", "partial") and not (error.get("title") and error.get("hint")):
            raise Bad(f"the operation is {ended.state} and does not say what happened: {error}")

    def find(self, ended: Ended, *, may_be_off: bool) -> None:
        """Where the VM is: on one host only, running or, if that is allowed, off."""
        states: dict[str, list[str]] = {}

        def one() -> bool:
            states.update(
                {h.name: [vm["state"] for vm in h.client.get("/v1/vms")] for h in self.lab.hosts}
            )
            (state,) = [state for found in states.values() for state in found]
            return state == "running" or (may_be_off and state == "off")

        def settled() -> bool:
            with contextlib.suppress(ValueError):
                return one()
            return False

        try:
            wait_until(settled, "the VM is on one host, and well", CLEAR_S)
        except AssertionError as error:
            raise Bad(f"its states are {states} after {CLEAR_S:g} s") from error
        for host in self.lab.hosts:
            if states[host.name]:
                self.home, ended.owner, ended.guest = host, host.name, states[host.name][0]
        self.other = next(host for host in self.lab.hosts if host is not self.home)

    def give_room(self, ended: Ended) -> None:
        """A guest whose pool was full stands until somebody has made room and resumes it."""
        for host in self.lab.hosts:
            for pool in FOLDERS:
                self.drain(self.pool(host, pool))
            for vm in host.client.get("/v1/vms"):
                if vm["state"] == "paused":
                    host.client.post("/v1/vms/tern:resume")
                    ended.notes.append("it waited for room")

    def prove(self) -> None:
        """Of a guest that runs: not rebooted, memory and disks whole."""
        began = time.time_ns()
        beat = self.witness.wait_beat(began)
        if beat.boot_id != self.guest.boot:
            raise Bad("the guest was booted again")
        verdict = self.guest.ask(self.home, "verify")
        if verdict["bad"] or not verdict["good"]:
            raise Bad(f"memory: {verdict}")
        durable = self._durable_now()
        self.must_have(durable)
        self.guest.ask(self.home, f"disk rate={RATE} disks={LOAD.disks}")

    def _durable_now(self) -> dict[str, int]:
        self.guest.ask(self.home, "disk off")
        status = self.guest.ask(self.home, "status")
        self.slowest_ms = status["disk"]["slowest_ms"]
        if status["disk"]["error"]:
            raise Bad(f"the guest's disks say {status['disks']}")
        return {name: disk["durable"] for name, disk in status["disks"].items()}

    def last_told(self) -> dict[str, int]:
        """What a guest that is gone called durable last, as its client heard it."""
        return self.witness.beats()[-1].durable

    def must_have(self, durable: dict[str, int]) -> None:
        """Both disks' logs are whole, up to what the guest called durable, in their images."""
        for disk in self.view(self.home)["spec"]["disks"]:
            image = self.pool(self.home, disk["pool"]) / disk["volume"]
            log = check(image, disk["name"])
            if not log.proves(durable[disk["name"]]):
                raise Bad(f"{disk['name']} lacks what was durable ({durable}): {log}")

    def must_be_clean(self) -> None:
        """No process, file, port, reservation or mark of a move that should not be there."""
        found: list[str] = []

        def nothing() -> bool:
            found[:] = [*self._strays(), *self._files(), *self._ports(), *self._marks()]
            return not found

        try:
            wait_until(nothing, "nothing is left over", CLEAR_S / 2)
        except AssertionError as error:
            raise Bad(f"left over: {'; '.join(found)}") from error

    def _strays(self) -> Iterator[str]:
        names = [netns.name(self.lab.name, role) for role in self.lab.record.hosts]
        known = {host.process.pid for host in self.lab.hosts if host.process}
        runs = self.view(self.home)["state"] != "off"
        mine = self.qemu(self.home) if runs else None
        for process in processes.in_namespaces({i for i in map(netns.inode, names) if i}):
            if process.pid not in known and process.pid != mine:
                yield f"process {process.pid}: {' '.join(processes.command(process.pid))[:120]}"

    def _files(self) -> Iterator[str]:
        disks = self.view(self.home)["spec"]["disks"]
        for host in self.lab.hosts:
            for pool in FOLDERS:
                mine = {d["volume"] for d in disks if d["pool"] == pool and host is self.home}
                there = {path.name for path in self.pool(host, pool).iterdir()} - OWN
                for name in sorted(there ^ mine):
                    what = "file" if name in there else "missing file"
                    yield f"{what} {host.name}:{pool}/{name}"
            runs = host.folder / "run" / "vms"
            if host is not self.home and runs.exists():
                yield from (f"folder {path}" for path in runs.iterdir())

    def _ports(self) -> Iterator[str]:
        for host in self.lab.hosts:
            for port in sorted(self._sockets(host) - self.sockets[host.name]):
                yield f"port {port} of {host.name}"

    @staticmethod
    def _sockets(host: Host) -> set[str]:
        argv = host.command(["ss", "-Hltun"])
        lines = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
        return {line.split()[4] for line in lines}

    def _marks(self) -> Iterator[str]:
        for host in self.lab.hosts:
            for vm in host.client.get("/v1/vms"):
                if vm["operation"]:
                    yield f"{host.name} is busy with {vm['name']}"
            for operation in host.client.get("/v1/operations", {"limit": 20}):
                if operation["state"] not in FINAL:
                    yield f"operation {operation['id']} of {host.name} is {operation['state']}"
            for path in (host.folder / "state" / "vms").glob("*.json"):
                record = json.loads(path.read_text())
                for key in ("made", "leaving", "departing", "moving"):
                    if _value(record, key):
                        yield f"{key}={_value(record, key)} in the record of {host.name}"
            kept = host.folder / "state" / "kept"
            if kept.exists():
                yield from (f"kept copy {path}" for path in kept.iterdir())

    def felt_ms(self, began_ns: int) -> float:
        """The longest time in which nobody heard the guest since then."""
        self.witness.wait_beat(time.time_ns())
        return heartbeat.measure(self.witness.beats(), began_ns, time.time_ns()).gap_ms


def _value(record: Any, key: str) -> Any:
    """Of the first `key` anywhere in it."""
    if isinstance(record, dict):
        if key in record:
            return record[key]
        for value in record.values():
            if (found := _value(value, key)) is not None:
                return found
    return None


__all__ = ["Bad", "Ended", "Lab", "Stage", "faulty_daemons"]
