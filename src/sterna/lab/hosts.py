"""One host of a lab: a namespace, a folder and its own `sternad`, which can be killed and started.

Promises that the daemon outlives whoever started it, in a session of its own, and is found again
by its folder; that ending it never touches its guests; and that all it writes stays in its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from sterna.client import Client
from sterna.clock import monotonic
from sterna.errors import DaemonUnreachable, LabFailed
from sterna.lab import netns
from sterna.lab.links import MIGRATIONS, Network, host_address
from sterna.lab.processes import Process, identify
from sterna.lab.record import Record

PORT = 7443
SHARED_POOL = "shared"
LOCAL_POOL = "local"
SWITCH = "lan"
GRACE_S = 15  # that a link may be down: less than by default, for faster tests
_READY_S = 30.0  # imports take 1 s of CPU; a loaded machine of 2 cores starts several at once
_STOP_S = 20.0
_POLL_S = 0.05


class Host:
    """Host number `index` of a lab."""

    def __init__(self, lab: Record, index: int) -> None:
        self._lab = lab
        self.name = lab.hosts[index]
        self.folder = lab.folder / self.name
        self.netns = netns.name(lab.name, self.name)
        self.address = host_address(Network.MANAGEMENT, index)
        self.migration_addresses = [host_address(n, index) for n in MIGRATIONS[: lab.migrations]]
        self.migration_address = self.migration_addresses[0]
        self.socket = self.folder / "run" / "sternad.sock"
        self.config = self.folder / "sternad.toml"
        self.log = self.folder / "sternad.log"
        self._started = self.folder / "sternad.json"  # the process last started

    @property
    def url(self) -> str:
        """For `sterna --host`."""
        return f"unix://{self.socket}"

    @property
    def client(self) -> Client:
        return Client(self.url)

    @property
    def process(self) -> Process | None:
        """The daemon, if it runs."""
        try:
            process = Process(**json.loads(self._started.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        _reap(process.pid)
        return process if process.is_alive else None

    def prepare(self) -> None:
        """Make its folder."""
        for name in ("state", "run", "pool"):
            (self.folder / name).mkdir(parents=True, mode=0o700)

    def configure(self) -> None:
        self.config.write_text(self._toml())

    def declare(self) -> None:
        """The switch that spans the hosts, and the two pools, by the API as users do it."""
        client = self.client
        client.post("/v1/switches", {"name": SWITCH, "uplink": "data0"})
        shared = self._lab.folder / "shared"
        client.post("/v1/pools", {"name": SHARED_POOL, "path": str(shared), "shared": True})
        client.post("/v1/pools", {"name": LOCAL_POOL, "path": str(self.folder / "pool")})

    def pair(self, other: Host) -> None:
        """Let this host and `other` trust each other, by the API as users do it."""
        invitation = other.client.post("/v1/invitations", {})
        self.client.post("/v1/peers", {"token": invitation["token"]})

    def start(self) -> None:
        """Start the daemon; `ready` waits for it."""
        if self.process is not None:
            return
        argv = [*netns.entering(self.netns), *_daemon(), "--config", str(self.config)]
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            pid = os.posix_spawnp(
                argv[0],
                argv,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
            )
        finally:
            os.close(log)
        process = identify(pid)
        if process is None:
            _reap(pid)
            raise self._failure("start")
        new = self._started.with_suffix(".new")
        new.write_text(json.dumps(asdict(process)))
        new.replace(self._started)

    def kill(self) -> None:
        """End the daemon as a crash does: at once. Its guests run on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon as an administrator does. Its guests run on."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the daemon's time (SIGSTOP) until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Until the daemon answers. LabFailed with the end of its log if it ends or stays silent."""
        deadline = monotonic() + timeout_s
        while True:
            try:
                self.client.get("/v1")
            except DaemonUnreachable as error:
                if self.process is None or monotonic() > deadline:
                    raise self._failure("start") from error
                time.sleep(_POLL_S)
            else:
                return

    async def ready(self, timeout_s: float = _READY_S) -> None:
        """`wait_ready` for coroutines."""
        await asyncio.to_thread(self.wait_ready, timeout_s)

    def command(self, argv: list[str]) -> list[str]:
        """The same command, run on this host."""
        return [*netns.entering(self.netns), *argv]

    def _end(self, number: signal.Signals) -> None:
        process = self.process
        if process is None:
            return
        process.signal(number)
        if not process.wait_ended(_STOP_S):
            raise self._failure("stop")
        _reap(process.pid)

    def _signal(self, number: signal.Signals) -> None:
        process = self.process
        if process is None or not process.signal(number):
            raise self._failure(f"send {number.name} to")

    def _failure(self, action: str) -> LabFailed:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        reason = " | ".join(lines[-4:]) or "it wrote nothing"
        return LabFailed(
            lab=self._lab.name,
            action=f"{action} sternad on {self.name}",
            reason=reason,
            fix=f"All it said is in {self.log}",
        )

    def _toml(self) -> str:
        lab = self._lab
        several = len(self.migration_addresses) > 1
        migration = {"addresses": self.migration_addresses} if several else {}
        tables: dict[str, dict[str, str | int | list[str]]] = {
            "": {
                "name": self.name,
                "state_dir": str(self.folder / "state"),
                "run_dir": str(self.folder / "run"),
            },
            "listen": {"address": self.address, "port": PORT},
            "migration": {"address": self.migration_address, "grace": GRACE_S, **migration},
            "qemu": {"accel": lab.accel, "probe_kernel": lab.probe_kernel},
        }
        return "\n".join(
            "\n".join([f"[{table}]" if table else "", *(f"{k} = {json.dumps(v)}" for k, v in keys.items())])
            for table, keys in tables.items()
        ).lstrip() + "\n"  # fmt: skip


def _daemon() -> list[str]:
    """The `sternad` that belongs to this Python, else the one on the PATH."""
    beside = Path(sys.executable).with_name("sternad")
    return [str(beside) if beside.exists() else shutil.which("sternad") or "sternad"]


def _reap(pid: int) -> None:
    """A daemon that we started ourselves and that ended stays a zombie until it is asked for."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def hosts_of(lab: Record) -> list[Host]:
    return [Host(lab, index) for index in range(len(lab.hosts))]
