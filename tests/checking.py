"""Words for tests of checks: an administrator on a host of a lab who checks, mends and moves."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.lab import hosts as lab_hosts
from sterna.lab.hosts import Host

SCRIPT = Path(sys.executable).with_name("sterna")
EYES = Path(__file__).with_name("wire_watch.py")
TIMEOUT_S = 90
CLEAN, REFUSED, WARNED = 0, 3, 10


class Administrator:
    """Somebody at a shell on `host`, which knows the other hosts of its lab by name."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def ask(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command line as it was printed; `sterna` is that of this Python."""
        argv = shlex.split(line)
        argv[0] = str(SCRIPT) if argv[0] == "sterna" else argv[0]
        return subprocess.run(
            self.host.command(argv),
            capture_output=True,
            text=True,
            env={**os.environ, "STERNA_CONFIG": str(self.host.config), "COLUMNS": "200"},
            timeout=TIMEOUT_S,
            check=False,
        )

    def run(self, line: str, code: int = 0) -> str:
        """Run a command line that must end with `code`; what it printed."""
        done = self.ask(line)
        assert done.returncode == code, (line, done.stdout, done.stderr)
        return done.stdout

    def check(self, vm: str, target: Host, options: str = "") -> dict[str, Any]:
        """The report of a check, whose exit code says the same."""
        done = self.ask(f"sterna check {vm} {target.name} {options} -o json")
        assert done.stdout, done.stderr
        report = json.loads(done.stdout)
        assert "outcome" in report, report
        codes = {"well": CLEAN, "warned": WARNED, "blocked": REFUSED}
        assert done.returncode == codes[report["outcome"]]
        return dict(report)

    def finds(self, vm: str, target: Host, options: str = "") -> dict[str, dict[str, Any]]:
        """Findings by id."""
        return {one["id"]: one for one in self.check(vm, target, options)["findings"]}

    def is_refused(self, vm: str, target: Host, identity: str) -> None:
        """A move does not begin, for that reason."""
        done = self.ask(f"sterna move {vm} {target.name} -o json")
        assert done.returncode == REFUSED, (done.stdout, done.stderr)
        assert identity in done.stdout + done.stderr

    def moves(self, vm: str, target: Host, options: str = "") -> None:
        """A move that must succeed."""
        self.run(f"sterna move {vm} {target.name} {options}")


def make(host: Host, name: str = "tern", pool: str = "local", **more: Any) -> None:
    """A VM, off, with one small disk and one NIC."""
    disk = {"name": "vda", "pool": pool, "size": "16MiB"}
    nic = {"name": "net0", "switch": "lan"}
    spec = {"name": name, "memory": "64MiB", "disks": [disk], "nics": [nic], **more}
    host.client.post("/v1/vms", spec)


def fill(host: Host, name: str, how: str = "-P 171 0 16M") -> None:
    """Its disk, of a VM that is off, so that there is something to carry."""
    (pool,) = [
        one["pool"] for one in host.client.get("/v1/pools") if one["pool"]["name"] == "local"
    ]
    (image,) = Path(pool["path"]).glob(f"{name}-vda*")
    subprocess.run(["qemu-io", "-c", f"write {how}", "-f", "qcow2", str(image)], check=True)


def restart(*hosts: Host) -> None:
    """Their daemons, which read their configuration anew and see what was mounted."""
    for host in hosts:
        host.stop()
    for host in hosts:
        host.start()
    for host in hosts:
        host.wait_ready()


@contextlib.contextmanager
def odd(host: Host, *prefix: str, **what: Any) -> Iterator[None]:
    """`host` is odd until the block ends: see odd_sternad. `prefix`: words before its command."""
    ordinary = lab_hosts._daemon
    daemon = [sys.executable, str(Path(__file__).with_name("odd_sternad.py"))]
    lab_hosts._daemon = lambda: ["env", f"ODD={json.dumps(what)}", *prefix, *daemon]
    try:
        restart(host)
    finally:
        lab_hosts._daemon = ordinary
    try:
        yield
    finally:
        restart(host)


@contextlib.contextmanager
def configured(host: Host, *changes: tuple[str, str]) -> Iterator[None]:
    """Its configuration with texts replaced, until the block ends."""
    ordinary = host.config.read_text()
    text = ordinary
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    host.config.write_text(text)
    try:
        restart(host)
        yield
    finally:
        host.config.write_text(ordinary)
        restart(host)


@contextlib.contextmanager
def small(folder: Path, *options: str) -> Iterator[Path]:
    """A small file system at `folder`; daemons see it after a `restart`."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", ",".join(("mode=0711", *options)), "sterna-test"]
    subprocess.run([*argv, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def ip(host: Host, words: str) -> None:
    """iproute2 in the host's namespace."""
    subprocess.run(host.command(["ip", *words.split()]), capture_output=True, check=True)


@contextlib.contextmanager
def closed_port(host: Host) -> Iterator[None]:
    """TCP that leaves its migration address is swallowed, as a firewall does that drops; pings pass."""
    rule = f"from {host.migration_address} ipproto tcp blackhole pref 10"
    ip(host, f"rule add {rule}")
    try:
        yield
    finally:
        ip(host, f"rule del {rule}")


def sent(host: Host, interface: str) -> int:
    """Bytes that have left by that interface."""
    counter = f"/sys/class/net/{interface}/statistics/tx_bytes"
    told = subprocess.run(host.command(["cat", counter]), check=True, capture_output=True)
    return int(told.stdout)


# ---- eyes on the wire ------------------------------------------------------------------------


@dataclass
class Watched:
    """What went by on all wires of a host."""

    found: int = 0  # times that the text was seen
    seen: int = 0  # bytes


@contextlib.contextmanager
def watching(host: Host, text: str) -> Iterator[Watched]:
    """Look for `text` on the wires of `host` until the block ends."""
    argv = host.command([sys.executable, str(EYES), "watch", text])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as eyes:
        assert eyes.stdout is not None
        try:
            assert eyes.stdout.readline() == "watching\n"
            watched = Watched()
            yield watched
        finally:
            eyes.terminate()
            said = eyes.stdout.readline().split()
        watched.found, watched.seen = int(said[0]), int(said[1])
