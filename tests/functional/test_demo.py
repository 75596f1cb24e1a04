"""The demo as users run it: what it prints, and that it is gone afterwards however it ended."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sterna.client import Client
from sterna.errors import LabProofFailed
from sterna.lab.console import GuestConsole
from sterna.lab.demo import Demo, Options
from sterna.lab.lab import Lab, leftovers
from sterna.lab.witness import Witness

pytestmark = pytest.mark.functional

DEMO = [sys.executable, "-m", "sterna.cli.main", "lab", "demo"]
KEYS = {"from", "to", "total_s", "pause_ms", "felt_ms", "lost_beats", "bytes_wire", "rounds"}


def test_the_guest_goes_there_and_back_and_the_last_line_tells_it(lab_name: str) -> None:
    argv = [*DEMO, "--name", lab_name, "--blocks", "50", "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == ["type", "state", "moves"]
    assert (result["type"], result["state"]) == ("result", "succeeded")
    assert [(m["from"], m["to"]) for m in result["moves"]] == [("hv-a", "hv-b"), ("hv-b", "hv-a")]
    for move in result["moves"]:
        assert set(move) >= KEYS
        assert move["memory_pages_bad"] == 0
        assert move["memory_pages_good"] == 25600
        assert 0 < move["felt_ms"] < 60_000
        assert move["rounds"] >= 1
        assert move["bytes_wire"] > 10 << 20  # of the 100 MB that it dirties, compressed or not
    assert leftovers(lab_name) == []


def test_people_get_a_table_and_a_lab_that_is_there_stays_as_it_was(lab: Lab) -> None:
    daemons = [host.process for host in lab.hosts]
    argv = [*DEMO, "--name", lab.name, "--moves", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    head, row = done.stdout.splitlines()[-2:]
    assert head.split("  ")[0] == "MOVE"
    assert "PAUSE FELT" in head
    assert row.startswith("hv-a to hv-b  ")
    assert [host.process for host in lab.hosts] == daemons
    assert [host.client.get("/v1/vms") for host in lab.hosts] == [[], []]


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("making the networks", signal.SIGINT),
        ("starting sternad", signal.SIGTERM),
        ('"phase": "memory"', signal.SIGINT),
        ('"phase": "memory"', signal.SIGTERM),
    ],
)
def test_a_demo_that_is_interrupted_leaves_nothing(
    lab_name: str, number: signal.Signals, moment: str
) -> None:
    argv = [*DEMO, "--name", lab_name, "-o", "json"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        assert any(moment in line for line in demo.stdout)
        demo.send_signal(number)
        rest, words = demo.communicate(timeout=60)
    assert demo.returncode == 130, rest + words
    assert words.splitlines()[-1] == "sterna: interrupted"
    assert leftovers(lab_name) == []


def test_a_guest_that_cannot_be_made_is_told_and_nothing_is_left(lab: Lab) -> None:
    name = lab["hv-a"].client.post("/v1/vms", {"name": "tern"})["name"]
    done = subprocess.run(
        [*DEMO, "--name", lab.name, "-o", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert json.loads(done.stdout.splitlines()[-1])["error"]["code"] == "vm.exists"
    assert [vm["name"] for vm in lab["hv-a"].client.get("/v1/vms")] == [name]


def _followed(client: Client, operation: dict[str, Any]) -> dict[str, Any]:
    while operation["state"] in ("queued", "running"):
        operation = client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
    return operation


def _order(lab: Lab, host: str, words: str) -> None:
    async def ask() -> None:
        async with GuestConsole(Path(lab[host].client.get("/v1/vms/tern")["console"])) as guest:
            await guest.ask(words)

    asyncio.run(ask())


def test_the_verdict_is_against_a_second_copy_a_wrong_page_and_a_reboot(lab: Lab) -> None:
    with Witness(lab) as witness:
        demo = Demo(lab, witness, Options(lab=lab.name), print)
        demo.start()
        hold = "import sys\nprint('ready', flush=True)\nsys.stdin.read()"
        with subprocess.Popen(
            lab["hv-a"].command(
                [sys.executable, "-c", hold, "-name", "guest=tern,debug-threads=on"]
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "ready\n"
            with pytest.raises(LabProofFailed, match="its QEMU processes are"):
                demo.move("hv-a", "hv-b", _followed)
            second.communicate()
        _order(lab, "hv-b", "mem spoil")
        with pytest.raises(LabProofFailed, match="1 of 25600 pages of its memory are wrong"):
            demo.move("hv-b", "hv-a", _followed)
        asked = time.time_ns()
        _order(lab, "hv-a", "reboot")
        old = witness.beats()[-1].boot_id
        while witness.wait_beat(asked).boot_id == old:
            asked = time.time_ns()
        with pytest.raises(LabProofFailed, match="it booted again"):
            demo.move("hv-a", "hv-b", _followed)
