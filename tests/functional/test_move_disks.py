"""Moves between hosts that share nothing: the disks travel under the running guest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from moving import Load, traveller, wait_until
from sterna.errors import MoveRefused
from sterna.lab.hosts import LOCAL_POOL, SHARED_POOL, Host
from sterna.lab.links import Network
from sterna.move.disks import MAX_BITS, granularity
from sterna.units import GIB, KIB

pytestmark = pytest.mark.functional

LOAD = Load(
    memory_mb_s=10,
    memory_mb=32,
    disk_blocks_s=200,
    disks=2,
    pool=LOCAL_POOL,
    formats=("qcow2", "raw"),
)
SLOW = "40mbit"


def pool(host: Host) -> Path:
    return host.folder / "pool"


def files(host: Host) -> list[str]:
    """Volumes in the host's own pool."""
    return sorted(path.name for path in pool(host).iterdir() if not path.name.startswith("."))


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_running_vm_takes_its_disks_along_and_back_and_a_copy_is_kept_if_wished(lab):
    a, b = lab.hosts
    with traveller(lab, LOAD) as guest:
        there = guest.ended(a, guest.move(a, b))
        assert there["state"] == "succeeded", there["error"]
        assert [step["name"] for step in there["steps"]] == [
            "reserve", "disks", "memory", "handover", "tidy"
        ]  # fmt: skip
        assert there["result"]["bytes_disks"] < 32 << 20, "holes were sent"
        guest.must_run_once_on(b)
        assert files(a) == []
        back = guest.ended(b, guest.move(b, a, keep_source=True, keep_days=2))
        assert back["state"] == "succeeded", back["error"]
        guest.must_run_once_on(a)
        (kept,) = b.client.get("/v1/kept")
        for file in kept["files"]:
            old, new = pool(b) / file["now"], pool(a) / file["was"]["volume"]
            assert allocated(new) <= allocated(old) * 1.05 + (1 << 20), "it did not stay sparse"
        b.client.delete(f"/v1/kept/{kept['id']}")
        assert files(b) == []
        images = {"vda": pool(a) / "tern-vda.qcow2", "vdb": pool(a) / "tern-vdb.raw"}
        guest.must_have_disks(a, images)


def test_each_disk_goes_where_it_is_told_and_becomes_what_it_is_told(lab):
    a, b = lab.hosts
    wishes = {"vda": {"format": "raw"}, "vdb": {"pool": SHARED_POOL, "format": "qcow2"}}
    with traveller(lab, LOAD) as guest:
        done = guest.ended(a, guest.move(a, b, disks=wishes))
        assert done["state"] == "succeeded", done["error"]
        guest.must_run_once_on(b)
        assert (files(a), files(b)) == ([], ["tern-vda.raw"])
        images = {
            "vda": pool(b) / "tern-vda.raw",
            "vdb": lab.folder / "shared" / "tern-vdb.qcow2",
        }
        guest.must_have_disks(b, images)


def test_a_cancelled_copy_leaves_nothing_and_the_guest_goes_on(lab):
    a, b = lab.hosts
    with traveller(lab, LOAD) as guest:
        lab.shape(Network.MIGRATION, SLOW)
        operation = guest.move(a, b)
        wait_until(lambda: guest.phase_of(a, operation) == "disks", "the disks are on their way")
        a.client.post(f"/v1/operations/{operation['id']}:cancel")
        assert guest.ended(a, operation)["state"] == "cancelled"
        guest.must_run_once_on(a)
        wait_until(lambda: files(b) == [], "the target has removed what it made")


def test_a_file_that_the_target_has_already_is_found_before_anything_begins(lab):
    a, b = lab.hosts
    disk = {"name": "vda", "pool": LOCAL_POOL, "size": "16MiB"}
    a.client.post("/v1/vms", {"name": "tern", "disks": [disk]})
    precious = pool(b) / "tern-vda.qcow2"
    precious.write_text("somebody else's")
    try:
        with pytest.raises(MoveRefused) as caught:
            a.client.post("/v1/vms/tern/moves", {"target": b.name})
        assert caught.value.facts["findings"][0]["id"] == "volume.exists"
        assert precious.read_text() == "somebody else's"
    finally:
        precious.unlink()


def test_a_dirty_bitmap_travels_with_its_disk(lab):
    a, b = lab.hosts
    with traveller(lab, LOAD) as guest:
        guest.power_off(a)
        image = pool(a) / "tern-vda.qcow2"
        subprocess.run(["qemu-img", "bitmap", "--add", str(image), "backup0"], check=True)
        a.client.post("/v1/vms/tern:start")
        guest.ask(a, "status")
        done = guest.ended(a, guest.move(a, b))
        assert done["state"] == "succeeded", done["error"]
        guest.power_off(b)
    info = subprocess.run(
        ["qemu-img", "info", "--output=json", str(pool(b) / image.name)],
        check=True,
        capture_output=True,
    )
    (bitmap,) = json.loads(info.stdout)["format-specific"]["data"]["bitmaps"]
    assert (bitmap["name"], bitmap["flags"]) == ("backup0", ["auto"])


def test_the_bitmap_of_a_mirror_is_fine_and_bounded():
    assert granularity(64 * GIB) == 4 * KIB
    assert granularity(256 * GIB) == 4 * KIB
    assert granularity(1024 * GIB) == 16 * KIB
    assert 1024 * GIB // granularity(1024 * GIB) <= MAX_BITS


def test_a_vm_moves_with_its_tree_of_checkpoints_and_one_is_applied_there(lab):
    a, b = lab.hosts
    with traveller(lab, LOAD) as guest:
        made = a.client.post("/v1/vms/tern/checkpoints", {"name": "before"})
        assert guest.ended(a, made)["state"] == "succeeded"
        done = guest.ended(a, guest.move(a, b))
        assert done["state"] == "succeeded", done["error"]
        guest.must_run_once_on(b)
        assert files(a) == []
        (checkpoint,) = b.client.get("/v1/vms/tern/checkpoints")
        assert checkpoint["name"] == "before"
        wishes = {"force": True}
        applied = b.client.post("/v1/vms/tern/checkpoints/before:apply", wishes)
        assert guest.ended(b, applied)["state"] in ("succeeded", "warned")
        guest.must_run_once_on(b)
