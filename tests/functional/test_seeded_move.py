"""Disks that are frozen for a move and sent as files: resumable, and whole again in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moving import Load, Traveller, wait_until
from sterna.host.parts import DIRECTORY
from sterna.lab import vm
from sterna.lab.disklog import check
from sterna.lab.hosts import LOCAL_POOL, Host
from sterna.lab.links import Network
from sterna.lab.witness import Witness
from sterna.units import MIB

pytestmark = pytest.mark.functional

LOAD = Load(
    memory_mb_s=5,
    memory_mb=16,
    disk_blocks_s=50,
    disks=2,
    disk_mb=160,
    span_mb=16,
    pool=LOCAL_POOL,
    formats=("raw", "qcow2"),
)
CONTENT = 64 * MIB  # beyond what the guest writes, of the raw disk; half of it compresses
SLOW = "160mbit"  # 3 s for what is left when it is compressed


class Sown(Traveller):
    """A guest whose first disk holds something."""

    def begin(self) -> None:
        home = self.lab.hosts[0]
        began = time.time_ns()
        home.client.post("/v1/vms", vm.spec(self.lab.guest(), self.name, load=self.load))
        with image(home, "vda", "raw").open("r+b") as file:
            for n in range(CONTENT // MIB):
                piece = os.urandom(MIB) if n % 2 else f"line {n:012}\n".encode() * (MIB // 18)
                os.pwrite(file.fileno(), piece, (64 + n) * MIB)
        home.client.post(f"/v1/vms/{self.name}:start")
        self.boot = self.witness.wait_beat(began).boot_id


@contextmanager
def sown(lab: Any) -> Iterator[Sown]:
    with Witness(lab) as witness:
        guest = Sown(lab, witness, LOAD)
        guest.begin()
        yield guest


def image(host: Host, disk: str, kind: str) -> Path:
    return host.folder / "pool" / f"tern-{disk}.{kind}"


def files(host: Host) -> list[str]:
    return sorted(p.name for p in (host.folder / "pool").iterdir() if not p.name.startswith("."))


def arrived(host: Host) -> int:
    """Bytes on storage of files that are on their way."""
    parts = (host.folder / "pool" / DIRECTORY).rglob("*")
    return sum(path.stat().st_blocks * 512 for path in parts if path.is_file())


def must_be_whole(guest: Traveller, host: Host) -> None:
    """One image a disk, no checkpoint left, hidden or not."""
    wait_until(
        lambda: files(host) == ["tern-vda.raw", "tern-vdb.qcow2"], f"whole disks on {host.name}"
    )
    wait_until(
        lambda: not host.client.get("/v1/operations", {"state": "running"}), "its merge has ended"
    )
    disks = {disk["volume"] for disk in host.client.get("/v1/vms/tern")["spec"]["disks"]}
    assert disks == {"tern-vda.raw", "tern-vdb.qcow2"}
    assert host.client.get("/v1/vms/tern/checkpoints") == []


def must_have_its_disks(guest: Traveller, host: Host, content: bytes) -> None:
    guest.ask(host, "disk off")
    told = {disk: log["durable"] for disk, log in guest.ask(host, "status")["disks"].items()}
    guest.power_off(host)
    for disk, kind in (("vda", "raw"), ("vdb", "qcow2")):
        log = check(image(host, disk, kind), disk)
        assert told[disk] > 0
        assert log.proves(told[disk]), (disk, log)
    assert read(host) == content


def read(host: Host) -> bytes:
    with image(host, "vda", "raw").open("rb") as file:
        return os.pread(file.fileno(), CONTENT, 64 * MIB)


@pytest.mark.parametrize("fault", ["cancel", "source daemon", "target daemon"])
def test_an_interrupted_move_goes_on_where_it_was_and_the_disks_are_whole_after_each(lab, fault):
    a, b = lab.hosts
    with sown(lab) as guest:
        content = read(a)
        lab.shape(Network.MIGRATION, SLOW)
        try:
            first = guest.move(a, b, disk_copy="seed")
            wait_until(lambda: arrived(b) > CONTENT * 3 // 4, "most of it has arrived")
            if fault == "cancel":
                a.client.post(f"/v1/operations/{first['id']}:cancel")
            else:
                host = a if fault == "source daemon" else b
                host.kill()
                host.start()
                host.wait_ready()
            ended = guest.ended(a, first)
            assert ended["state"] in ("cancelled", "failed"), ended
            guest.must_run_once_on(a)
            must_be_whole(guest, a)
            there = arrived(b)
            assert there > CONTENT * 3 // 4
            second = guest.ended(a, guest.move(a, b, disk_copy="seed"))
        finally:
            lab.shape(Network.MIGRATION, None)
        assert second["state"] == "succeeded", second["error"]
        assert second["result"]["bytes_present"] > CONTENT * 2 // 3
        assert second["result"]["bytes_disks"] < CONTENT // 2
        guest.must_run_once_on(b)
        must_be_whole(guest, b)
        assert (files(a), arrived(b)) == ([], 0)
        must_have_its_disks(guest, b, content)


def test_a_target_that_dies_at_once_makes_the_disks_whole_when_it_is_back(lab):
    a, b = lab.hosts
    with sown(lab) as guest:
        content = read(a)
        done = guest.ended(a, guest.move(a, b, disk_copy="seed"))
        b.kill()
        assert done["state"] == "succeeded", done["error"]
        assert done["result"]["bytes_disks"] < CONTENT * 3 // 4, "it was not compressed"
        b.start()
        b.wait_ready()
        must_be_whole(guest, b)
        guest.must_run_once_on(b)
        must_have_its_disks(guest, b, content)
