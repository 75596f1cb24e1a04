"""The daemon and its guests do all they have to within what packaging/sternad.service allows them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jail
from checking import Administrator, restart
from moving import Load, traveller
from sterna.lab import hosts as lab_hosts
from sterna.lab.hosts import Host

pytestmark = [
    pytest.mark.functional,
    pytest.mark.skipif(
        shutil.which("systemd-analyze") is None, reason="systemd-analyze names the groups of calls"
    ),
]
WORST = 45  # tenths of systemd's points of exposure, of 100; a unit that says nothing has 96


@contextlib.contextmanager
def jailed(*hosts: Host) -> Iterator[None]:
    """Their daemons, and what these start, may do what the unit says."""
    ordinary = lab_hosts._daemon
    lab_hosts._daemon = lambda: [sys.executable, str(Path(jail.__file__)), *ordinary()]
    try:
        restart(*hosts)
        yield
    finally:
        lab_hosts._daemon = ordinary
        restart(*hosts)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_moves_disks_switches_and_checkpoints_need_no_more_than_the_unit_allows(lab):
    a, b = lab.hosts
    admin = Administrator(a)
    with (
        jailed(a, b),
        traveller(lab, Load(memory_mb_s=10, memory_mb=32, disk_blocks_s=50)) as guest,
    ):
        of_qemu = status(a.client.get("/v1/vms/tern")["process"]["pid"])
        lacks = int(status(1)["CapBnd"], 16) & ~int(of_qemu["CapEff"], 16)
        assert lacks & 1 << jail.CAPABILITIES.index("SYS_ADMIN")
        assert (of_qemu["NoNewPrivs"], of_qemu["Seccomp"]) == ("1", "2")
        for host in lab.hosts:
            here = Administrator(host)
            here.run("sterna switch create inner --type private")
            here.run("sterna switch delete inner")
        admin.run("sterna vm checkpoint create tern before")
        admin.run("sterna vm checkpoint delete tern before")
        admin.run("sterna move tern --storage local")
        assert guest.ended(a, guest.move(a, b))["state"] == "succeeded"
        guest.must_run_once_on(b)
        back = guest.move(b, a, on_stall="postcopy", carrier="direct")
        assert guest.ended(b, back)["state"] == "succeeded"
        guest.must_run_once_on(a)
        assert (
            a.folder / "run"
        ).stat().st_mode & 0o777 == 0o755  # the group reaches the socket in it
        admin.run("sterna vm stop tern")


def test_the_unit_gives_away_as_much_as_systemd_can_take():
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={WORST}", jail.UNIT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout[-200:]
