"""Versions of machines between QEMU 7.2 and 10: guests go both ways, and what cannot go is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checking import Administrator, configured, odd
from sterna.lab import vm
from sterna.lab.console import GuestConsole
from sterna.lab.hosts import Host
from sterna.lab.vm import Load

pytestmark = [pytest.mark.functional, pytest.mark.long]
OLD = "pc-q35-7.2"


@pytest.fixture(scope="session")
def newer() -> str:
    """Keys of [qemu] for QEMU 10 in a folder of its own."""
    script = Path(__file__).parents[2] / "scripts" / "qemu10"
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    binary, *arguments = done.stdout.split()
    return f"[qemu]\nbinary = {json.dumps(binary)}\narguments = {json.dumps(arguments)}\n"


@contextlib.contextmanager
def upgraded(host: Host, newer: str) -> Iterator[None]:
    with configured(host, ("[qemu]\n", newer)):
        assert host.client.get("/v1/host")["qemu"]["version"].startswith("10.")
        yield


def asked(host: Host, order: str) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        async with GuestConsole(Path(host.client.get("/v1/vms/tern")["console"])) as console:
            await console.ready()
            return await console.ask(order)

    return asyncio.run(ask())


def test_a_guest_with_every_device_goes_to_qemu_10_and_back_while_it_runs(lab, newer):
    here, there = lab.hosts
    admin, other = Administrator(here), Administrator(there)
    load = Load(memory_mb_s=5, memory_mb=16, disk_blocks_s=20, disks=2, formats=("qcow2", "raw"))
    nics = [{"name": f"net{i}", "switch": "lan"} for i in range(2)]
    spec = vm.spec(lab.guest(), "tern", load=load)
    spec |= {"graphics": True, "firmware": "uefi", "nics": nics, "machine": OLD, "vcpus": 2}
    with upgraded(there, newer):
        here.client.post("/v1/vms", spec)
        admin.run("sterna vm start tern")
        boot = asked(here, "status")["boot_id"]
        cpu = asked(here, "cpu")
        for mover, source, target in ((admin, here, there), (other, there, here)):
            assert mover.check("tern", target)["findings"] == []
            mover.moves("tern", target)
            assert source.client.get("/v1/vms") == []
            assert asked(target, "status")["boot_id"] == boot
            assert asked(target, "verify")["bad"] == 0
            assert {key: asked(target, "cpu")[key] for key in ("cpu", "vendor")} == {
                key: cpu[key] for key in ("cpu", "vendor")
            }
        asked(here, "disk off")
        assert asked(here, "diskverify")["ok"]


def test_a_version_is_raised_for_good_and_the_host_that_is_left_behind_is_named(lab, newer):
    here, there = lab.hosts
    admin, other = Administrator(here), Administrator(there)
    with upgraded(there, newer):
        here.client.post("/v1/vms", vm.spec(lab.guest(), "tern") | {"machine": OLD})
        nothing = admin.run("sterna vm upgrade-version tern")
        assert "pc-q35-7.2 already" in nothing
        admin.moves("tern", there)
        plan = there.client.get("/v1/vms/tern/upgrade")
        assert (plan["machine"], plan["to"]) == (OLD, "pc-q35-10.0")
        assert (plan["left_behind"], plan["stays"]) == ({here.name: OLD}, [there.name])
        unasked = other.ask("sterna vm upgrade-version tern")
        assert unasked.returncode == 2
        assert f"{here.name} is left behind: it offers {OLD} at most" in unasked.stderr
        other.run("sterna vm start tern")
        running = other.ask("sterna vm upgrade-version tern --yes")
        assert running.returncode == 4
        assert "sterna vm stop tern" in running.stderr
        other.run("sterna vm stop tern")
        other.run("sterna vm upgrade-version tern --yes")
        assert there.client.get("/v1/vms/tern")["spec"]["machine"] == "pc-q35-10.0"
        back = other.ask(f"sterna vm upgrade-version tern --to {OLD} --yes")
        assert back.returncode == 3
        assert "only raised" in back.stderr
        # The other direction is impossible now, off and running, and the check says why.
        other.run("sterna vm start tern")
        (blocker,) = other.check("tern", here)["findings"]
        assert (blocker["id"], blocker["severity"]) == ("qemu.machine-type", "blocker")
        assert "QEMU 7.2" in blocker["finding"]
        assert f"to {OLD}" in blocker["finding"]
        other.is_refused("tern", here, "qemu.machine-type")
        boot = asked(there, "status")["boot_id"]
        forced(here, there)
        assert asked(there, "status")["boot_id"] == boot  # it ran on where it was
        assert "Install QEMU 10." in blocker["fix"]
        with upgraded(here, newer):
            assert other.check("tern", here)["findings"] == []
            other.moves("tern", here)
            assert asked(here, "status")["boot_id"] == boot
            admin.moves("tern", there)


def forced(here: Host, there: Host) -> None:
    """The move that the check forbids, tried all the same: QEMU cannot build that machine."""
    blind = ["qemu.machine-type", "qemu.unsupported"]
    with odd(here, blind=blind), odd(there, blind=blind):
        tried = Administrator(there).ask(f"sterna move tern {here.name}")
        assert tried.returncode == 1, (tried.returncode, tried.stdout, tried.stderr)
        assert "unsupported machine type" in tried.stderr


def test_the_largest_processor_of_another_qemu_is_another_one(lab, newer):
    here, there = lab.hosts
    admin = Administrator(here)
    with upgraded(there, newer):
        here.client.post("/v1/vms", vm.spec(lab.guest(), "tern") | {"cpu": "max", "machine": OLD})
        admin.run("sterna vm start tern")
        found = admin.finds("tern", there)
        assert set(found) == {"processor.features", "processor.changes"}
        assert "pcommit" in found["processor.features"]["finding"]  # QEMU 10 has given it up
        assert "would find 3dnowprefetch" in found["processor.changes"]["finding"]
