"""CDs in the drives of VMs: changed under a guest that reads them, carried by moves, or left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boot_cd
import pytest

from checking import REFUSED, Administrator
from moving import wait_until
from sterna.errors import (
    DriveUnclear,
    MediumMissing,
    MediumRefused,
    MediumStuck,
    PoolInUse,
    SternaError,
    VMWrongState,
)
from sterna.lab import hosts as lab_hosts
from sterna.lab.hosts import LOCAL_POOL, SHARED_POOL, Host

pytestmark = pytest.mark.functional

CRASHING = Path(__file__).with_name("cd_crashing.py")
MIB = 1 << 20


class Player:
    """A VM `tern` whose guest does nothing but read its CD, and the CDs of both hosts."""

    def __init__(self, lab: Any, folder: Path) -> None:
        self.lab = lab
        self.here, self.there = lab.hosts
        self.admin = Administrator(self.here)
        self.folder = folder

    def cd(self, name: str, host: Host | None = None, size: int = MIB) -> bytes:
        return boot_cd.make(self.pool(host) / name, f"this is {name}", self.folder, size)

    def pool(self, host: Host | None = None) -> Path:
        return (host or self.here).folder / "pool"

    def create(self, *media: str, **more: Any) -> None:
        cds = [
            {"name": f"cd{n}", **({"pool": LOCAL_POOL, "volume": one} if one else {})}
            for n, one in enumerate(media)
        ]
        spec = {"name": "tern", "memory": "32MiB", "graphics": False, "cds": cds, **more}
        self.here.client.post("/v1/vms", spec)

    def act(self, action: str, host: Host | None = None, **body: Any) -> dict[str, Any]:
        return dict((host or self.here).client.post(f"/v1/vms/tern:{action}", body or None))

    def insert(self, volume: str, host: Host | None = None, **body: Any) -> dict[str, Any]:
        return self.act("insert", host, pool=LOCAL_POOL, volume=volume, **body)

    def drives(self, host: Host | None = None) -> dict[str, str]:
        spec = (host or self.here).client.get("/v1/vms/tern")["spec"]
        return {cd["name"]: cd["volume"] for cd in spec["cds"]}

    def opened(self, host: Host | None = None) -> set[str]:
        """The CDs that its QEMU has open."""
        pid = (host or self.here).client.get("/v1/vms/tern")["process"]["pid"]
        found = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found |= {link.readlink().name} if link.readlink().suffix == ".iso" else set()
        return found

    def loaded(self) -> dict[str, str]:
        """The CD in each drive as QEMU says, asked while no daemon is there to mend anything."""
        directory = self.here.folder / "run" / "vms" / self.here.client.get("/v1/vms/tern")["id"]
        self.here.stop()
        with socket.socket(socket.AF_UNIX) as qmp, qmp.makefile("rw") as talk:
            qmp.connect(str(directory / "qmp"))
            talk.readline()
            for command in ("qmp_capabilities", "query-block"):
                talk.write(json.dumps({"execute": command}) + "\n")
                talk.flush()
                while "return" not in (said := json.loads(talk.readline())):
                    pass
        self.here.start()
        self.here.wait_ready()
        return {
            one["qdev"]: Path(one["inserted"]["image"]["filename"]).name
            if "inserted" in one
            else ""
            for one in said["return"]
        }

    def must_say(self, text: str, host: Host | None = None) -> None:
        """Its guest says so from now on: twice, for the first may be from before."""
        host = host or self.here
        vm = host.client.get("/v1/vms/tern")["id"]
        log = host.folder / "run" / "vms" / vm / "console.log"
        before = log.read_text().count(f"{text}\n") if log.exists() else 0
        wait_until(
            lambda: log.read_text().count(f"{text}\n") > before + 1,
            f"the guest on {host.name} says {text!r}",
        )

    def move(self, source: Host, target: Host, state: str = "succeeded") -> dict[str, Any]:
        began = source.client.post("/v1/vms/tern/moves", {"target": target.name})
        path = f"/v1/operations/{began['id']}"
        done = source.client.get(path, {"wait": 60}, wait_s=90)
        assert done["state"] == state, done
        return dict(done)


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """As QEMU sees it, another program has the file open to write to it: block/file-posix.c."""
    with path.open("rb") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        yield


@pytest.fixture
def player(lab, tmp_path) -> Iterator[Player]:
    found = Player(lab, tmp_path)
    yield found
    for host in lab.hosts:
        for vm in host.client.get("/v1/vms"):
            if vm["state"] != "off":
                stop = host.client.post(f"/v1/vms/{vm['name']}:stop", {"force": True})
                host.client.get(f"/v1/operations/{stop['id']}", {"wait": 20})
            host.client.delete(f"/v1/vms/{vm['name']}")
        for path in found.pool(host).glob("*.iso"):
            path.unlink()


def test_a_guest_goes_on_reading_its_cd_on_the_target_of_a_live_move(player):
    here, there = player.here, player.there
    content = player.cd("a.iso", size=8 * MIB)
    player.create("a.iso", "")
    player.act("start")
    player.must_say("this is a.iso")
    (found,) = (
        one
        for one in player.admin.check("tern", there)["findings"]
        if one["id"].startswith("storage.")
    )
    assert (found["id"], found["severity"]) == ("storage.cd-image", "info")
    assert found["finding"] == (
        f"the CD a.iso in drive cd0 (8 MiB) is not on {there.name}: it is carried there"
    )
    assert player.move(here, there)["result"]["bytes_disks"] > 7 * MIB
    player.must_say("this is a.iso", there)
    assert (player.pool(there) / "a.iso").read_bytes() == content
    assert (player.pool(here) / "a.iso").read_bytes() == content

    player.act("eject", there)
    player.must_say("none", there)
    assert (player.drives(there), player.opened(there)) == ({"cd0": "", "cd1": ""}, set())
    player.insert("a.iso", there, drive="cd0")
    player.insert("a.iso", there)
    assert player.opened(there) == {"a.iso"}
    assert player.drives(there) == {"cd0": "a.iso", "cd1": "a.iso"}
    assert player.move(there, here)["result"]["bytes_disks"] < MIB  # it is there, and the same
    assert player.opened() == {"a.iso"}
    assert player.act("eject", drive="cd1")["spec"]["cds"][1]["pool"] == ""
    assert player.opened() == {"a.iso"}


def test_a_vm_moves_without_its_cd_once_the_fix_has_been_run(player):
    player.cd("a.iso", size=8 * MIB)
    player.create("a.iso", disks=[{"name": "vda", "pool": LOCAL_POOL, "size": "1MiB"}])
    found = player.admin.finds("tern", player.there)["storage.cd-image"]
    player.admin.run(found["command"])
    assert "storage.cd-image" not in player.admin.finds("tern", player.there)
    assert player.move(player.here, player.there)["result"]["bytes_disks"] < MIB
    assert not (player.pool(player.there) / "a.iso").exists()
    assert (player.pool() / "a.iso").exists()


def test_a_cd_that_is_gone_or_another_on_the_target_stops_a_move_before_it_begins(player):
    player.cd("a.iso")
    player.cd("a.iso", player.there, size=2 * MIB)
    player.create("a.iso")
    assert "cd.differs" in player.admin.finds("tern", player.there)
    player.admin.is_refused("tern", player.there, "cd.differs")
    other = player.cd("a.iso", player.there)
    done = player.move(player.here, player.there, "failed")
    assert done["error"]["facts"]["reason"].startswith(f"{LOCAL_POOL}/a.iso on {player.there.name}")
    assert (player.pool(player.there) / "a.iso").read_bytes() == other
    assert player.there.client.get("/v1/vms") == []

    (player.pool() / "a.iso").unlink()
    with pytest.raises(MediumMissing) as missing:
        player.act("start")
    assert missing.value.advice.endswith("sterna vm eject tern cd0")
    found = player.admin.finds("tern", player.there)["storage.cd-missing"]
    assert found["severity"] == "blocker"
    player.admin.is_refused("tern", player.there, "storage.cd-missing")
    player.admin.run(found["command"])
    assert "storage.cd-missing" not in player.admin.finds("tern", player.there)
    player.admin.moves("tern", player.there)


def test_a_daemon_that_dies_while_it_changes_a_cd_finds_the_drive_and_mends_it(player, monkeypatch):
    player.cd("a.iso")
    player.cd("b.iso")
    player.create("a.iso")
    player.act("start")
    player.must_say("this is a.iso")
    player.here.stop()
    with monkeypatch.context() as patch:
        patch.setattr(lab_hosts, "_daemon", lambda: [sys.executable, str(CRASHING)])
        player.here.start()
        player.here.wait_ready()
        with pytest.raises(SternaError):
            player.insert("b.iso")
    player.here.kill()
    player.here.start()
    player.here.wait_ready()
    assert player.drives() == {"cd0": "b.iso"}
    assert player.opened() == {"b.iso"}
    player.cd("c.iso")
    with written(player.pool() / "c.iso"), pytest.raises(MediumStuck):
        player.insert("c.iso")
    assert (player.drives(), player.opened()) == ({"cd0": "b.iso"}, {"b.iso"})
    assert player.loaded() == {"cd-cd0": "b.iso"}
    (player.pool() / "c.iso").write_bytes(b"")
    with pytest.raises(MediumRefused):
        player.insert("c.iso")
    with pytest.raises(VMWrongState):
        player.insert("a.iso", new_drive=True)
    assert (player.drives(), player.opened()) == ({"cd0": "b.iso"}, {"b.iso"})


def test_what_users_say_of_cds_is_done_or_refused_in_a_sentence(player):
    admin, pool = player.admin, player.pool()
    player.cd("a.iso")
    player.cd("b.iso")
    admin.run(
        f"sterna vm create tern --memory 32MiB --no-graphics --cd {LOCAL_POOL}/a.iso --cd none"
    )
    assert "cd0: a.iso in pool local" in admin.run("sterna vm show tern")
    admin.run("sterna vm eject tern")  # the only one that has a CD
    with pytest.raises(DriveUnclear):
        player.act("eject")
    admin.run(f"sterna vm insert tern cd0 {LOCAL_POOL}/a.iso")
    admin.run(f"sterna vm insert tern {LOCAL_POOL}/b.iso --new-drive")
    assert player.drives() == {"cd0": "a.iso", "cd1": "", "cd2": "b.iso"}
    told = admin.ask(f"sterna vm insert tern {pool}/a.iso")
    assert f"sterna pool create isos --path {pool}" in told.stderr
    with pytest.raises(PoolInUse):
        player.here.client.delete(f"/v1/pools/{LOCAL_POOL}")
    disk = admin.ask(f"sterna vm create gull --disk pool={LOCAL_POOL},volume=a.iso,format=raw")
    assert disk.returncode == REFUSED
    assert "it is in a CD drive of tern" in disk.stderr

    folder = player.folder / "out"
    said = admin.run(f"sterna vm export tern {folder}")
    assert f"{LOCAL_POOL}/a.iso" in said
    manifest = json.loads((folder / "sterna-vm.json").read_text())
    assert [cd["pool"] for cd in manifest["spec"]["cds"]] == ["", "", ""]
    admin.run(f"sterna vm import {folder} --name gull --new-identity")
    assert len(player.here.client.get("/v1/vms/gull")["spec"]["cds"]) == 3
    player.here.client.delete("/v1/vms/tern")
    assert {path.name for path in pool.glob("*.iso")} == {"a.iso", "b.iso"}  # nobody's, and kept


def test_a_cd_on_a_shared_pool_stays_there(player):
    shared = player.lab.folder / "shared" / "a.iso"
    boot_cd.make(shared, "this is a.iso", player.folder, 8 * MIB)
    try:
        player.create("")
        player.act("start")
        player.act("insert", pool=SHARED_POOL, volume="a.iso")
        assert "storage.cd-image" not in player.admin.finds("tern", player.there)
        assert "bytes_disks" not in player.move(player.here, player.there)["result"]
        assert player.opened(player.there) == {"a.iso"}
        assert list(player.pool(player.there).glob("*.iso")) == []
        player.act("eject", player.there)
    finally:
        shared.unlink()
