"""The command line against real daemons, VMs and moves, as an administrator uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.lab import demo, vm
from sterna.lab.vm import Load
from terminal import Terminal

pytestmark = pytest.mark.functional

SCRIPT = Path(sys.executable).with_name("sterna")
SLOW = "20MB"  # of 256 MiB a second: time to see the middle of a move
TIMEOUT_S = 90


class Admin:
    """Somebody at a shell whose `sterna` talks to `host`."""

    def __init__(self, host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.environment = {**os.environ, "STERNA_HOST": host.url}

    def runs(self, *arguments: str, code: int = 0) -> str:
        """Run a command that must end with `code`; what it printed."""
        done = subprocess.run(
            [SCRIPT, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, (arguments, done)
        return done.stdout if code == 0 else done.stderr

    def reads(self, *arguments: str) -> object:
        return json.loads(self.runs(*arguments, "-o", "json"))

    def begins(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )


@pytest.fixture
def admin(lab, tmp_path):
    return Admin(lab.hosts[0], tmp_path)


@pytest.fixture
def guest(admin, lab):
    """A running guest, made from a spec file."""
    spec = vm.spec(lab.guest(), "tern", load=Load(memory_mb_s=5, memory_mb=16))
    file = admin.folder / "tern.json"
    file.write_text(json.dumps(spec))
    assert admin.runs("vm", "create", "-f", str(file), "--start").startswith("started tern")


def test_a_vm_is_made_with_options_shown_started_and_deleted(admin, lab):
    boot = vm.spec(lab.guest(), "tern")["boot"]
    admin.runs(
        "vm", "create", "tern", "--memory", "256MiB", "--kernel", boot["kernel"], "--initrd",
        boot["initrd"], "--cmdline", boot["cmdline"], "--nic", "switch=lan", "--no-graphics",
        "--disk", "pool=shared,size=64MiB,format=raw",
    )  # fmt: skip
    view = admin.reads("vm", "show", "tern")
    assert [disk["name"] for disk in view["spec"]["disks"]] == ["vda"]
    assert view["spec"]["memory"] == 256 << 20
    assert "64 MiB" in admin.runs("vm", "show", "tern")
    assert "is running" in admin.runs("vm", "start", "tern")
    admin.runs("vm", "pause", "tern")
    assert admin.reads("vm", "list")[0]["state"] == "paused"
    admin.runs("vm", "resume", "tern")
    assert "it is running" in admin.runs("vm", "delete", "tern", "--yes", code=4)
    admin.runs("vm", "stop", "tern", "--force")
    admin.runs("vm", "delete", "tern", "--yes")
    assert admin.reads("vm", "list") == []


def test_bad_input_is_refused_and_changes_nothing(admin, lab):
    file = admin.folder / "bad.json"
    file.write_text('{"name": "tern", "vcpu": 2}')
    assert "unknown field 'vcpu'" in admin.runs("vm", "create", "-f", str(file), code=2)
    admin.runs("vm", "create", "Tern", code=2)
    admin.runs("vm", "create", "tern", "--nic", "switch=none", code=4)
    admin.runs("vm", "create", "tern", "--disk", "pool=none,size=1GiB", code=4)
    admin.runs("vm", "create", "tern", "--disk", "pool=shared,image=/none.qcow2", code=3)
    admin.runs("vm", "show", "tern", code=4)
    admin.runs("move", "tern", "hv-b", code=4)
    assert admin.reads("vm", "list") == []


def test_a_move_is_followed_to_its_report_and_is_refused_where_it_cannot_go(admin, lab, guest):
    assert "hv-x" in admin.runs("move", "tern", "hv-x", code=4)
    lines = [
        json.loads(line) for line in admin.runs("move", "tern", "hv-b", "-o", "json").splitlines()
    ]
    assert {"state", "log", "result"} <= {line["type"] for line in lines}
    assert (lines[-1]["state"], lines[-1]["to"]) == ("succeeded", "hv-b")
    operation = lines[-1]["operation"]
    assert "nothing of tern is left" in admin.runs("op", "show", operation[:8])
    assert admin.runs("op", "log", operation)
    admin.runs("op", "wait", operation)


def test_one_ctrl_c_cancels_a_move_and_waits_for_the_undo(admin, lab, guest):
    with Terminal(
        "move", "tern", "hv-b", "--bandwidth", SLOW, STERNA_HOST=admin.host.url
    ) as terminal:
        terminal.expect("MiB left")
        terminal.type(b"\x03")
        assert terminal.end() == 7
        assert "was cancelled in phase memory and undone" in terminal.text
    assert admin.reads("vm", "list")[0]["state"] == "running"
    assert lab.hosts[1].client.get("/v1/vms") == []


def test_following_survives_the_death_and_restart_of_the_daemon(admin, lab, guest):
    move = admin.begins("move", "tern", "hv-b", "--bandwidth", SLOW, "-o", "json")
    with move:
        assert move.stdout is not None
        for line in move.stdout:
            if json.loads(line)["type"] == "progress":
                break
        admin.host.kill()
        admin.host.start()
        *_, last = move.stdout
    result = json.loads(last)
    assert result["type"] == "result"
    assert (move.returncode, result["state"]) in {(1, "failed"), (0, "succeeded")}
    assert sum(len(demo.qemus(host.netns, "tern")) for host in lab.hosts) == 1


def test_another_host_is_reached_by_its_name_over_tls(admin, lab, guest):
    a, _ = lab.hosts
    admin.environment |= {"STERNA_CONFIG": str(a.config), "STERNA_HOST": "hv-b"}
    listing = subprocess.run(
        a.command([str(SCRIPT), "vm", "list", "-o", "json"]),
        capture_output=True,
        text=True,
        env=admin.environment,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert json.loads(listing.stdout) == []


def test_the_console_reaches_the_guest(admin, guest):
    with Terminal("vm", "console", "tern", STERNA_HOST=admin.host.url) as terminal:
        terminal.expect("Ctrl-] leaves")
        terminal.insist_until(b"status\r", '"boot_id"')
        terminal.type(b"\x1d")
        assert terminal.end() == 0
