"""What is wrong with storage is found by its check, mended as it says, and the VM moves then."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess

import pytest

from checking import CLEAN, REFUSED, Administrator, make, odd, restart, small
from sterna.errors import SternaError

pytestmark = pytest.mark.functional


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


@pytest.fixture
def pools(lab):
    """A function that makes a pool on a host; all are gone afterwards, and the VM that uses them."""
    made = []

    def pool(host, name, path, *, shared=False):
        host.client.post("/v1/pools", {"name": name, "path": str(path), "shared": shared})
        made.append((host, name))

    yield pool
    for host in lab.hosts:
        with contextlib.suppress(SternaError):
            host.client.delete("/v1/vms/tern")
    for host, name in made:
        with contextlib.suppress(SternaError):
            host.client.delete(f"/v1/pools/{name}")


def image_tool(*arguments):
    subprocess.run(arguments, check=True, capture_output=True)


def test_a_pool_that_the_target_lacks(lab, admin, pools, tmp_path):
    here, there = lab.hosts
    pools(here, "fast", tmp_path / "here")
    make(here, pool="fast")
    found = admin.finds("tern", there)
    assert list(found) == ["storage.pool-missing"]
    assert "fast" in found["storage.pool-missing"]["finding"]
    assert not found["storage.pool-missing"]["is_safe"]  # nobody knows whether it may be there
    admin.is_refused("tern", there, "fast")
    (tmp_path / "here").rename(tmp_path / "aside")  # both hosts of the lab see all directories
    admin.run(found["storage.pool-missing"]["command"])
    there.client.delete("/v1/pools/fast")
    (tmp_path / "aside").rename(tmp_path / "here")
    pools(there, "fast", tmp_path / "there")
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_shared_pool_whose_storage_is_there_is_joined_by_the_safe_fix(
    lab, admin, pools, tmp_path
):
    here, there = lab.hosts
    (tmp_path / "san").mkdir()
    pools(here, "san", tmp_path / "san", shared=True)
    make(here, pool="san")
    found = admin.finds("tern", there)["storage.pool-missing"]
    assert found["is_safe"]
    done = admin.ask(f"sterna check tern {there.name} --fix")
    assert done.returncode == 0, done.stderr
    assert f"+ {found['command']}" in done.stderr
    assert done.stdout.endswith(f"tern can move to {there.name}: nothing in its way\n")
    admin.moves("tern", there)
    there.client.delete("/v1/vms/tern")
    there.client.delete("/v1/pools/san")


def test_a_pool_whose_directory_is_gone(lab, admin, pools, tmp_path):
    here, there = lab.hosts
    pools(here, "fast", tmp_path / "here")
    pools(there, "fast", tmp_path / "there")
    make(here, pool="fast")
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    found = admin.finds("tern", there)
    assert list(found) == ["storage.pool-broken"]
    assert str(tmp_path / "there") in found["storage.pool-broken"]["finding"]
    (tmp_path / "elsewhere").rename(tmp_path / "there")
    assert "fast" in admin.run(found["storage.pool-broken"]["command"])
    admin.moves("tern", there)


def test_pools_declared_shared_that_are_two(lab, admin, pools, tmp_path):
    """By identity; and by a proof, where one is a copy of the other, as a restored backup is."""
    here, there = lab.hosts
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    pools(here, "san", tmp_path / "one", shared=True)
    pools(there, "san", tmp_path / "other", shared=True)
    make(here, pool="san")
    found = admin.finds("tern", there)
    assert [(key, one["severity"]) for key, one in found.items()] == [
        ("storage.not-the-same", "warning")
    ]
    there.client.delete("/v1/pools/san")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    pools(there, "san", tmp_path / "copy", shared=True)
    found = admin.finds("tern", there)
    assert "is a copy" in found["storage.not-the-same"]["finding"]
    admin.is_refused("tern", there, "volume.exists")  # nothing there is written over
    there.client.delete("/v1/pools/san")
    pools(there, "san", tmp_path / "one", shared=True)
    report = admin.check("tern", there)
    assert report["findings"] == []
    assert [place["travels"] for place in report["places"]] == [False]
    assert not list((tmp_path / "one").glob(".*proof*"))
    admin.moves("tern", there)


def test_shared_storage_that_cannot_be_proven(lab, admin, pools, tmp_path):
    """Not one file more can be made there: the move is not kept from going, only warned of."""
    here, there = lab.hosts
    with small(tmp_path / "san", "nr_inodes=16") as san:
        restart(here, there)
        pools(here, "san", san, shared=True)
        pools(there, "san", san, shared=True)
        make(here, pool="san")
        fillers = [san / f"filler-{n}" for n in range(16)]
        with contextlib.suppress(OSError):
            for one in fillers:
                one.touch()
        found = admin.finds("tern", there)
        assert list(found) == ["storage.not-proven"]
        assert "No space left" in found["storage.not-proven"]["finding"]
        for one in fillers:
            one.unlink(missing_ok=True)
        assert admin.finds("tern", there) == {}
        admin.moves("tern", there)
        there.client.delete("/v1/vms/tern")
        for host in (here, there):
            host.client.delete("/v1/pools/san")
    restart(here, there)


def test_a_pool_without_room_and_what_becomes_of_a_move_that_is_tried_all_the_same(
    lab, admin, pools, tmp_path
):
    here, there = lab.hosts
    with small(tmp_path / "there", "size=6m") as full:
        restart(there)
        pools(here, "fast", tmp_path / "here")
        pools(there, "fast", full)
        make(here, pool="fast")
        image = tmp_path / "here" / "tern-vda.qcow2"
        data = tmp_path / "data"
        data.write_bytes(os.urandom(8 << 20))
        image_tool("qemu-img", "convert", "-O", "qcow2", str(data), str(image))
        image_tool("qemu-img", "resize", str(image), "16M")
        found = admin.finds("tern", there)
        assert list(found) == ["storage.no-room"]
        assert there.name in found["storage.no-room"]["finding"]
        admin.is_refused("tern", there, "fast")
        with odd(here, blind=["storage.no-room"]), odd(there, blind=["pool.no-room"]):
            tried = admin.ask(f"sterna move tern {there.name}")
            assert tried.returncode not in (0, REFUSED)
            assert "tern" in [vm["name"] for vm in here.client.get("/v1/vms")]
        assert "name another pool" in found["storage.no-room"]["fix"]
        assert admin.finds("tern", there, "--pool local") == {}
        admin.moves("tern", there, "--pool local")
        there.client.delete("/v1/vms/tern")
        there.client.delete("/v1/pools/fast")
    restart(there)


def test_a_disk_that_another_program_has_open(lab, admin):
    here, there = lab.hosts
    make(here)
    image = here.folder / "pool" / "tern-vda.qcow2"
    other = subprocess.Popen(["qemu-io", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdin.write(b"length\n")
        other.stdin.flush()
        other.stdout.readline()
        found = admin.finds("tern", there)
        assert list(found) == ["storage.disk-locked"]
        assert "tern-vda.qcow2" in found["storage.disk-locked"]["finding"]
    finally:
        other.communicate()
    admin.moves("tern", there)


def test_an_image_that_is_damaged(lab, admin, tmp_path):
    here, there = lab.hosts
    make(here)
    image = here.folder / "pool" / "tern-vda.qcow2"
    image_tool("qemu-io", "-c", "write 0 4M", str(image))
    whole = tmp_path / "whole"
    shutil.copy(image, whole)
    with image.open("r+b") as file:  # of its first reference count block
        file.seek(2 * 65536)
        file.write(b"\0" * 64)
    found = admin.finds("tern", there)
    assert list(found) == ["disk.corrupt"]
    assert str(image) in found["disk.corrupt"]["finding"]
    admin.is_refused("tern", there, "damaged")
    shutil.copy(image, whole)  # as the fix says: a copy is mended
    subprocess.run(["qemu-img", "check", "-r", "all", str(whole)], check=False, capture_output=True)
    shutil.copy(whole, image)
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_an_image_that_is_missing(lab, admin, tmp_path):
    here, there = lab.hosts
    make(here)
    image = here.folder / "pool" / "tern-vda.qcow2"
    image.rename(tmp_path / "aside")
    found = admin.finds("tern", there)
    assert list(found) == ["volume.missing"]
    assert str(image) in found["volume.missing"]["finding"]
    shutil.move(tmp_path / "aside", image)
    admin.moves("tern", there)


def test_snapshots_and_bitmaps_that_a_move_would_lose(lab, admin):
    here, there = lab.hosts
    make(here)
    image = str(here.folder / "pool" / "tern-vda.qcow2")
    image_tool("qemu-img", "snapshot", "-c", "before", image)
    image_tool("qemu-img", "bitmap", "--add", image, "daily")
    here.client.post("/v1/vms/tern:start")
    found = admin.finds("tern", there, "--disk vda=local:raw")
    assert list(found) == ["storage.snapshots-lost", "storage.bitmaps-lost"]
    assert "before" in found["storage.snapshots-lost"]["finding"]
    assert "daily" in found["storage.bitmaps-lost"]["finding"]
    operation = here.client.post("/v1/vms/tern:stop", {"force": True})
    here.client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
    image_tool("qemu-img", "snapshot", "-d", "before", image)
    here.client.post("/v1/vms/tern:start")
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_kernel_that_only_this_host_has(lab, admin, tmp_path):
    here, there = lab.hosts
    kernel = tmp_path / "only-here" / "vmlinuz"
    kernel.parent.mkdir()
    shutil.copy(lab.guest().kernel, kernel)
    make(here, boot={"kernel": str(kernel)})
    pid = there.process.pid  # its mounts are its own
    inside = ["nsenter", "-t", str(pid), "-m"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "t", str(kernel.parent)], check=True)
    found = admin.finds("tern", there)
    assert list(found) == ["storage.boot-missing"]
    assert str(kernel) in found["storage.boot-missing"]["finding"]
    subprocess.run([*inside, "umount", str(kernel.parent)], check=True)
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_pool_that_the_disks_may_fill_one_day(lab, admin, pools, tmp_path):
    here, there = lab.hosts
    with small(tmp_path / "there", "size=8m") as tight:
        restart(there)
        pools(here, "fast", tmp_path / "here")
        pools(there, "fast", tight)
        make(here, pool="fast")
        here.client.post("/v1/vms/tern:start")
        found = admin.finds("tern", there)
        assert list(found) == ["storage.may-fill-up"]
        assert "16 MiB" in found["storage.may-fill-up"]["finding"]
        pid = there.process.pid  # its mounts are its own
        grow = ["mount", "-o", "remount,size=64m", str(tight)]
        subprocess.run(["nsenter", "-t", str(pid), "-m", *grow], check=True)
        assert admin.finds("tern", there) == {}
        admin.moves("tern", there)
        operation = there.client.post("/v1/vms/tern:stop", {"force": True})
        there.client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
        there.client.delete("/v1/vms/tern")
        there.client.delete("/v1/pools/fast")
    restart(there)


def test_a_move_of_disks_within_a_host_is_checked_as_it_is_done(lab, admin, pools, tmp_path):
    here = lab.hosts[0]
    pools(here, "fast", tmp_path / "fast")
    make(here)
    before = here.client.get("/v1/vms/tern")

    def checked(where, code):
        return json.loads(admin.run(f"sterna check tern --storage {where} -o json", code))

    for where, identity in (
        ("local", "storage.already-there"),
        ("vdz=fast", "storage.disk-unknown"),
        ("slow", "storage.pool-missing"),
    ):
        report = checked(where, REFUSED)
        assert (report["outcome"], report["findings"][0]["id"]) == ("blocked", identity)
        done = admin.ask(f"sterna move tern --storage {where} -o json")
        assert done.returncode == REFUSED
        assert report["findings"][0]["finding"] in done.stdout + done.stderr
    report = checked("fast", CLEAN)
    assert [(one["disk"], one["pool"], one["to"]) for one in report["places"]] == [
        ("vda", "local", "fast")
    ]
    said = admin.run("sterna check tern --storage fast")
    assert said == "the disks of tern can move: nothing in their way\n"
    assert here.client.get("/v1/vms/tern") == before
    admin.run("sterna move tern --storage fast")
    assert admin.ask("sterna check tern --storage fast").returncode == REFUSED
