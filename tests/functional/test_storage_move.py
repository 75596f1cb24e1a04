"""Disks move between the pools of one host: under a guest that writes to them, and off."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from storage_crashing import POINTS

from moving import Load, Traveller, a_twin, record_of, traveller, wait_until
from sterna.errors import SternaError, StorageMoveRefused
from sterna.lab import demo
from sterna.lab import hosts as lab_hosts
from sterna.lab.disklog import check
from sterna.lab.hosts import LOCAL_POOL, Host

pytestmark = pytest.mark.functional

CRASHING = Path(__file__).with_name("storage_crashing.py")
LOAD = Load(disk_blocks_s=200, disks=2, formats=("qcow2", "raw"), pool=LOCAL_POOL, span_mb=8)
QUICK = {"recorded"}
UNDONE = {"made", "pending"}


class Places:
    """The local pool of a host and one more, and what is in them."""

    def __init__(self, host: Host, fast: Path) -> None:
        self.host = host
        self.paths = {LOCAL_POOL: host.folder / "pool", "fast": fast}

    def files(self, pool: str) -> set[str]:
        return {path.name for path in self.paths[pool].iterdir()} - {".sterna-pool.json"}

    def disks(self, vm: str = "tern") -> dict[str, Path]:
        spec = self.host.client.get(f"/v1/vms/{vm}")["spec"]
        return {disk["name"]: self.paths[disk["pool"]] / disk["volume"] for disk in spec["disks"]}

    def move(self, **wishes: Any) -> dict[str, Any]:
        return dict(self.host.client.post("/v1/vms/tern/storage-moves", wishes))

    def must_be_all(self) -> None:
        """The VM's disks are the only files, and its record has no work left."""
        disks = self.disks()
        here = {self.paths[pool] / name for pool in self.paths for name in self.files(pool)}
        assert here == set(disks.values())
        record = record_of(self.host)
        assert '"made": []' in record.read_text()
        assert '"leaving": []' in record.read_text()

    def must_have_every_block(self, guest: Traveller) -> None:
        """All that the guest was told is written is in the images; it is off afterwards."""
        guest.ask(self.host, "disk off")
        durable = {
            name: disk["durable"] for name, disk in guest.ask(self.host, "status")["disks"].items()
        }
        guest.power_off(self.host)
        for name, path in self.disks().items():
            log = check(path, name)
            assert durable[name] > 0
            assert log.proves(durable[name]), (name, log)


@contextlib.contextmanager
def pool(host: Host, path: Path) -> Iterator[Places]:
    host.client.post("/v1/pools", {"name": "fast", "path": str(path)})
    try:
        yield Places(host, path)
    finally:
        host.start()
        host.wait_ready()
        for vm in host.client.get("/v1/vms"):
            if vm["state"] != "off":
                stop = host.client.post(f"/v1/vms/{vm['name']}:stop", {"force": True})
                host.client.get(f"/v1/operations/{stop['id']}", {"wait": 20})
            host.client.delete(f"/v1/vms/{vm['name']}")
        for copy in host.client.get("/v1/kept"):
            host.client.delete(f"/v1/kept/{copy['id']}")
        host.client.delete("/v1/pools/fast")
        (host.folder / "pool" / "template.qcow2").unlink(missing_ok=True)  # no VM's own


@pytest.fixture
def places(lab) -> Iterator[Places]:
    host = lab.hosts[0]
    with pool(host, host.folder / "fast") as made:
        yield made
    shutil.rmtree(host.folder / "fast", ignore_errors=True)


@pytest.fixture
def small(lab) -> Iterator[Places]:
    """A pool of 24 MiB, a file system of its own."""
    host = lab.hosts[0]
    path = host.folder / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=711", "small", str(path)]
    host.stop()  # its mounts are those of its start
    subprocess.run(mount, check=True)
    try:
        host.start()
        host.wait_ready()
        with pool(host, path) as made:
            yield made
    finally:
        host.stop()
        subprocess.run(["umount", str(path)], check=True)
        path.rmdir()
        host.start()
        host.wait_ready()


def test_the_disks_of_a_running_guest_move_there_and_back_and_lose_no_block(lab, places):
    with traveller(lab, LOAD) as guest:
        before = places.disks()
        there = places.move(pool="fast", disks={"vdb": {"pool": "fast", "format": "qcow2"}})
        done = guest.ended(places.host, there)
        assert done["state"] == "succeeded", done["error"]
        assert set(done["result"]["disks"]) == {"vda", "vdb"}
        assert done["result"]["held_ms"] > 0
        print(done["result"]["text"], "held", done["result"]["held_ms"], "ms")
        assert places.files(LOCAL_POOL) == set()
        assert [path.parent.name for path in places.disks().values()] == ["fast", "fast"]
        assert places.disks()["vdb"].suffix == ".qcow2"
        places.must_be_all()
        guest.must_run_once_on(places.host)

        back = places.move(disks={"vda": {"pool": LOCAL_POOL}}, bandwidth=200 << 20)
        assert guest.ended(places.host, back)["state"] == "succeeded"
        assert places.disks()["vda"] == before["vda"]
        assert places.disks()["vdb"].parent.name == "fast"
        places.must_be_all()
        guest.must_run_once_on(places.host)
        for image in places.disks().values():
            assert image.stat().st_blocks * 512 < 24 << 20  # holes stay holes
        places.must_have_every_block(guest)

        off = places.move(pool=LOCAL_POOL, disks={"vdb": {"format": "raw"}})
        done = guest.ended(places.host, off)
        assert done["state"] == "succeeded", done["error"]
        assert places.disks() == before
        places.must_be_all()
        for name, path in places.disks().items():
            assert check(path, name).highest > 0
        kept = places.move(pool="fast", keep_source=True, keep_days=2)
        assert guest.ended(places.host, kept)["state"] == "succeeded"
        (copy,) = places.host.client.get("/v1/kept")
        assert {file["now"] for file in copy["files"]} == places.files(LOCAL_POOL)
        for file in copy["files"]:
            name = file["was"]["volume"].split("-")[1][:3]
            assert check(places.paths[LOCAL_POOL] / file["now"], name).highest > 0


def test_a_cancelled_and_a_failed_move_leave_the_guest_where_it_was(lab, small):
    load = Load(disk_blocks_s=400, disks=1, formats=("raw",), pool=LOCAL_POOL, span_mb=48)
    with traveller(lab, load) as guest:
        before = small.disks()
        slow = small.move(pool="fast", bandwidth=100_000)
        wait_until(lambda: small.files("fast"), "the copy has begun")
        small.host.client.post(f"/v1/operations/{slow['id']}:cancel")
        assert guest.ended(small.host, slow)["error"]["code"] == "storage.cancelled"
        assert small.disks() == before
        small.must_be_all()

        guest.ask(small.host, "disk rate=4000 span_mb=48 burst=64")
        full = small.move(pool="fast", bandwidth=6_000_000)
        done = guest.ended(small.host, full)
        assert done["state"] == "failed", done
        assert "No space left" in done["error"]["title"]
        assert small.disks() == before
        small.must_be_all()
        guest.must_run_once_on(small.host)

        with pytest.raises(StorageMoveRefused) as refused:
            small.move(pool="fast")
        assert refused.value.facts["findings"][0]["id"] == "storage.no-room"
        small.must_have_every_block(guest)


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=[] if p in QUICK else pytest.mark.long) for p in POINTS]
)
def test_a_daemon_that_dies_in_mid_move_leaves_the_disks_in_one_place(
    lab, places, monkeypatch, point
):
    host = places.host
    with traveller(lab, LOAD) as guest:
        before = places.disks()
        host.stop()
        with monkeypatch.context() as patch:
            patch.setattr(lab_hosts, "_daemon", lambda: [sys.executable, str(CRASHING), point])
            host.start()
            host.wait_ready()
        with contextlib.suppress(SternaError):
            places.move(pool="fast")
        wait_until(lambda: host.process is None, "the daemon is dead")
        host.start()
        host.wait_ready()
        (newest,) = host.client.get("/v1/operations", {"kind": "storage-move", "limit": 1})
        done = guest.ended(host, newest)
        if point in UNDONE:
            assert done["error"]["code"] == "storage.failed"
            assert places.disks() == before
        else:
            assert done["state"] == "succeeded", done["error"]
            assert {path.parent.name for path in places.disks().values()} == {"fast"}
        places.must_be_all()
        guest.must_run_once_on(host)
        places.must_have_every_block(guest)


@pytest.mark.long
def test_a_qemu_that_dies_with_its_daemon_at_the_switch_has_every_block(lab, places, monkeypatch):
    host = places.host
    with traveller(lab, LOAD) as guest:
        host.stop()
        with monkeypatch.context() as patch:
            patch.setattr(lab_hosts, "_daemon", lambda: [sys.executable, str(CRASHING), "recorded"])
            host.start()
            host.wait_ready()
        durable = guest.ask(host, "status")["disks"]
        with contextlib.suppress(SternaError):
            places.move(pool="fast")
        wait_until(lambda: host.process is None, "the daemon is dead")
        for pid in demo.qemus(host.netns, "tern"):
            os.kill(pid, 9)
        wait_until(lambda: demo.qemus(host.netns, "tern") == [], "its QEMU has ended")
        host.start()
        host.wait_ready()
        assert host.client.get("/v1/vms/tern")["state"] == "off"
        places.must_be_all()
        for name, path in places.disks().items():
            assert path.parent.name == "fast"
            assert check(path, name).proves(durable[name]["durable"])


def test_what_stands_in_the_way_is_said_before_anything_is_copied(lab, places):
    host = places.host
    client = host.client
    disks = [
        {"name": "vda", "pool": LOCAL_POOL, "size": "8MiB"},
        {"name": "vdb", "pool": LOCAL_POOL, "size": "8MiB", "format": "raw"},
    ]
    client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "disks": disks})
    there = places.disks()

    def refused(**wishes: Any) -> str:
        with pytest.raises(StorageMoveRefused) as error:
            places.move(**wishes)
        assert error.value.advice
        return str(error.value.facts["findings"][0]["id"])

    assert refused(pool="none") == "storage.pool-missing"
    assert refused(pool=LOCAL_POOL) == "storage.already-there"
    assert refused(disks={"vdz": {"pool": "fast"}}) == "storage.disk-unknown"
    assert refused(disks={"vda": {"pool": LOCAL_POOL}}) == "storage.already-there"
    (places.paths["fast"] / there["vda"].name).write_text("another's")
    assert refused(pool="fast") == "storage.file-exists"
    assert (places.paths["fast"] / there["vda"].name).read_text() == "another's"
    (places.paths["fast"] / there["vda"].name).unlink()
    with a_twin(host):
        assert refused(pool="fast") == "storage.disk-shared"
    node = f"driver=file,filename={there['vdb']},node-name=f"
    holder = ["qemu-storage-daemon", "--blockdev", node, "--chardev", "stdio,id=c"]
    export = "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path="
    socket = host.folder / "e.sock"
    with subprocess.Popen([*holder, "--export", f"{export}{socket}"]) as other:
        wait_until(socket.exists, "another program has the disk open")
        try:
            assert refused(pool="fast") == "storage.disk-locked"
        finally:
            other.terminate()
    socket.unlink(missing_ok=True)
    there["vdb"].rename(there["vdb"].with_suffix(".away"))
    assert refused(pool="fast") == "storage.file-missing"
    there["vdb"].with_suffix(".away").rename(there["vdb"])
    places.must_be_all()


def grow_a_tree(places: Places) -> dict[str, Any]:
    """Give the disk vda of the VM, which is off, a template below, two checkpoints and a branch."""
    host, folder = places.host, places.paths[LOCAL_POOL]
    record = record_of(host)
    host.stop()

    def image(name: str, below: str = "") -> None:
        on = ["-b", below, "-F", "qcow2"] if below else ["64M"]
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", name, *on], cwd=folder, check=True
        )

    image("template.qcow2", "")
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 40M 1M", str(folder / "template.qcow2")]
    subprocess.run(write, check=True, capture_output=True)
    (folder / "tern-vda.qcow2").unlink()
    image("tern-vda.qcow2", "template.qcow2")
    image("tern-vda.2.qcow2", "tern-vda.qcow2")
    image("tern-vda.3.qcow2", "tern-vda.2.qcow2")
    image("tern-vda.branch.qcow2", "tern-vda.qcow2")
    (folder / "tern.memory").write_bytes(os.urandom(3 << 20))
    data = json.loads(record.read_text())
    (disk,) = [one for one in data["spec"]["disks"] if one["name"] == "vda"]
    disk |= {"volume": "tern-vda.3.qcow2", "base": [{"volume": "template.qcow2"}]}
    memory = {"pool": LOCAL_POOL, "volume": "tern.memory", "size": 3 << 20, "sha256": "0" * 64}
    points = [("a1", "", "tern-vda.qcow2"), ("b2", "a1", "tern-vda.2.qcow2")]
    points += [("c3", "a1", "tern-vda.branch.qcow2")]
    data["checkpoints"] = [
        {
            "id": key,
            "name": key,
            "created": "2026-01-01T00:00:00.000Z",
            "parent": parent,
            "images": {"vda": {"volume": volume}},
            "memory": memory | {"accel": "tcg"} if key == "b2" else None,
        }
        for key, parent, volume in points
    ]
    data["at"] = "b2"
    record.write_text(json.dumps(data))
    host.start()
    host.wait_ready()
    return data


def test_a_disk_with_checkpoints_moves_with_its_tree_running_and_off(lab, places):
    host, client = places.host, places.host.client
    everything = {"template.qcow2", "tern.memory"} | {
        f"tern-vda{part}.qcow2" for part in ("", ".2", ".3", ".branch")
    }
    load = Load(disk_blocks_s=100, disks=1, formats=("qcow2",), pool=LOCAL_POOL, span_mb=8)
    with traveller(lab, load) as guest:
        guest.power_off(host)
        grow_a_tree(places)
        began = time.time_ns()
        client.post("/v1/vms/tern:start")
        guest.boot = guest.witness.wait_beat(began).boot_id
        wait_until(lambda: guest.ask(host, "status")["disk"]["durable"] > 20, "it has written")

        done = guest.ended(host, places.move(pool="fast"))
        assert done["state"] == "succeeded", done["error"]
        assert places.files("fast") == everything
        assert places.files(LOCAL_POOL) == {"template.qcow2"}  # others may rest on it
        wait_until(lambda: guest.ask(host, "status")["disk"]["durable"] > 40, "it writes on")
        places.must_have_every_block(guest)
        top = places.paths["fast"] / "tern-vda.3.qcow2"
        chain = ["qemu-img", "info", "--backing-chain", "--output=json", str(top)]
        found = json.loads(subprocess.run(chain, check=True, capture_output=True).stdout)
        assert [Path(one["filename"]).parent.name for one in found] == ["fast"] * 4

        done = guest.ended(host, places.move(pool=LOCAL_POOL))
        assert done["state"] == "succeeded", done["error"]
        assert places.files(LOCAL_POOL) == everything
        assert places.files("fast") == {"template.qcow2"}
        back = places.paths[LOCAL_POOL] / "tern-vda.3.qcow2"
        assert check(back, "vda").highest >= 40
        read = ["qemu-io", "-f", "qcow2", "-c", "read -P 7 40M 1M", str(back)]
        assert b"failed" not in subprocess.run(read, check=True, capture_output=True).stdout

        with pytest.raises(StorageMoveRefused) as refused:
            places.move(pool="fast", flatten=True)
        assert refused.value.facts["findings"][0]["id"] == "storage.flatten-checkpoints"
        with pytest.raises(StorageMoveRefused) as refused:
            places.move(disks={"vda": {"pool": "fast", "format": "raw"}})
        assert refused.value.facts["findings"][0]["id"] == "storage.format-frozen"
        (places.paths["fast"] / "template.qcow2").write_bytes(b"another template")
        with pytest.raises(StorageMoveRefused) as refused:
            places.move(pool="fast")
        assert refused.value.facts["findings"][0]["id"] == "storage.base-differs"


def test_a_disk_that_its_guest_only_reads_moves_while_it_runs(lab, places):
    client = places.host.client
    disks = [{"name": "vda", "pool": LOCAL_POOL, "size": "8MiB", "read_only": True}]
    client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "disks": disks})
    client.post("/v1/vms/tern:start")
    for place in ("fast", LOCAL_POOL):
        operation = places.move(pool=place)
        done = client.get(f"/v1/operations/{operation['id']}", {"wait": 60})
        assert done["state"] == "succeeded", done["error"]
        assert places.disks()["vda"].parent == places.paths[place]
        places.must_be_all()
    assert client.get("/v1/vms/tern")["state"] == "running"


@pytest.mark.long
@pytest.mark.parametrize("fault", ["daemon stopped", "daemon killed", "QEMU killed"])
def test_a_copy_that_is_cut_in_its_middle_is_undone(lab, places, fault):
    host = places.host
    with traveller(lab, LOAD) as guest:
        before = places.disks()
        slow = places.move(pool="fast", bandwidth=100_000)
        wait_until(lambda: len(places.files("fast")) == 2, "both copies have begun")
        durable = guest.ask(host, "status")["disks"]
        match fault:
            case "daemon stopped":
                host.stop()
                assert places.files("fast") == set()
            case "daemon killed":
                host.kill()
            case "QEMU killed":
                for pid in demo.qemus(host.netns, "tern"):
                    os.kill(pid, 9)
        host.start()
        host.wait_ready()
        done = guest.ended(host, slow)
        assert done["error"]["code"] == "storage.failed"
        assert places.disks() == before
        places.must_be_all()
        if fault == "QEMU killed":
            assert host.client.get("/v1/vms/tern")["state"] == "off"
            for name, path in before.items():
                assert check(path, name).proves(durable[name]["durable"])
        else:
            guest.must_run_once_on(host)
            places.must_have_every_block(guest)
