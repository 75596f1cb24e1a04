"""Cold moves between hosts that share nothing: the files of a VM that is off, whole, thin and resumable."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from moving import WAIT_S, wait_until
from sterna.errors import MoveRefused, SternaError, StorageMoveRefused
from sterna.host.parts import DIRECTORY
from sterna.lab.hosts import LOCAL_POOL, SHARED_POOL, Host
from sterna.lab.lab import Lab
from sterna.qemu import image

pytestmark = pytest.mark.functional

MIB = 1 << 20
DATA = 40 * MIB  # of content on each disk
BANDWIDTH = 16 * MIB  # bytes/s: both disks take 5 s, time to interrupt


def content(path: Path, size: int = 192 * MIB) -> Path:
    """A thin raw image: a dense part, scattered blocks, and a lot of nothing."""
    with path.open("wb") as file:
        for _ in range(DATA // MIB):
            file.write(os.urandom(MIB))
        for at in range(64 * MIB, size, 8 * MIB):
            os.pwrite(file.fileno(), os.urandom(4096), at + 12288)
        file.truncate(size)
    return path


def virtual(path: Path, tmp: Path) -> str:
    """Hash of what a guest would read."""
    raw = tmp / "virtual.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    with raw.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def volumes(host: Host) -> dict[str, Path]:
    """The visible files of its local pool."""
    return {
        path.name: path
        for path in (host.folder / "pool").iterdir()
        if not path.name.startswith(".")
    }


def parts(host: Host) -> list[Path]:
    """The files that did not arrive completely."""
    return [path for path in (host.folder / "pool" / DIRECTORY).rglob("*") if path.is_file()]


def create(host: Host, tmp: Path) -> None:
    """tern, off, with a qcow2 and a raw disk on the pool that only this host has."""
    image = str(content(tmp / "content.raw"))
    disks = [
        {"name": "vda", "pool": LOCAL_POOL, "format": "qcow2", "image": image},
        {"name": "vdb", "pool": LOCAL_POOL, "format": "raw", "image": image},
    ]
    host.client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "disks": disks})


def move(source: Host, target: Host, **wishes: Any) -> dict[str, Any]:
    return dict(source.client.post("/v1/vms/tern/moves", {"target": target.name, **wishes}))


def ended(host: Host, operation: dict[str, Any]) -> dict[str, Any]:
    path = f"/v1/operations/{operation['id']}"
    return dict(host.client.get(path, {"wait": WAIT_S}, wait_s=2 * WAIT_S))


def arrived(host: Host) -> int:
    """Bytes on storage of all parts."""
    return sum(path.stat().st_blocks * 512 for path in parts(host))


def is_off_and_only_on(lab: Lab, host: Host) -> bool:
    return {
        other.name: [view["state"] for view in other.client.get("/v1/vms")] for other in lab.hosts
    } == {other.name: ["off"] if other is host else [] for other in lab.hosts}


def must_be_the_same(
    target: Host, hashes: dict[str, str], sizes: dict[str, int], tmp: Path
) -> None:
    there = volumes(target)
    assert {name: virtual(path, tmp) for name, path in there.items()} == hashes
    for name, path in there.items():
        assert path.stat().st_blocks * 512 <= 1.05 * sizes[name], name


@pytest.fixture
def two(lab, tmp_path):
    """hv-a with the VM, hv-b, and what the disks are."""
    a, b = lab.hosts
    create(a, tmp_path)
    hashes = {name: virtual(path, tmp_path) for name, path in volumes(a).items()}
    sizes = {name: path.stat().st_blocks * 512 for name, path in volumes(a).items()}
    yield a, b, hashes, sizes
    for part in parts(b):  # an interrupted move keeps them, for a day
        part.unlink()


def test_a_vm_that_is_off_goes_with_its_disks_and_they_stay_thin(lab, two, tmp_path):
    a, b, hashes, sizes = two
    done = ended(a, move(a, b))
    assert done["state"] == "succeeded", done["error"]
    must_be_the_same(b, hashes, sizes, tmp_path)
    assert is_off_and_only_on(lab, b)
    assert (volumes(a), parts(b)) == ({}, [])
    allocated = sum(sizes.values())
    assert 2 * DATA < done["result"]["bytes_disks"] < 1.03 * allocated
    assert done["result"]["bytes_present"] == 0


@pytest.mark.parametrize("fault", ["cancel", "source", "target"])
def test_an_interrupted_move_goes_on_where_it_was_and_trusts_nothing(lab, two, tmp_path, fault):
    a, b, hashes, sizes = two
    allocated = sum(sizes.values())
    operation = move(a, b, bandwidth=BANDWIDTH)
    wait_until(lambda: arrived(b) > 0.75 * allocated, "most of it is there")
    if fault == "cancel":
        a.client.post(f"/v1/operations/{operation['id']}:cancel")
    else:
        host = a if fault == "source" else b
        host.kill()
        host.start()
        host.wait_ready()
    done = ended(a, operation)
    assert done["state"] == ("cancelled" if fault == "cancel" else "failed")
    wait_until(lambda: is_off_and_only_on(lab, a), "the VM is where it was")
    assert volumes(b) == {}
    assert len(parts(b)) == 2
    assert {name: virtual(path, tmp_path) for name, path in volumes(a).items()} == hashes

    turned = max(parts(b))
    with turned.open("r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, 5 * MIB)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), 5 * MIB)
    done = ended(a, move(a, b))
    assert done["state"] == "succeeded", done["error"]
    assert 0 < done["result"]["bytes_disks"] < 0.4 * allocated
    assert done["result"]["bytes_present"] > 0.6 * allocated
    must_be_the_same(b, hashes, sizes, tmp_path)
    assert (volumes(a), parts(b)) == ({}, [])


def test_a_cold_move_that_would_convert_a_disk_is_refused_before_it_begins(two):
    a, b, _, _ = two
    with pytest.raises(SternaError) as caught:
        move(a, b, disks={"vda": {"format": "raw"}})
    assert caught.value.exit_code == 3
    assert "it is off, and its files go as they are" in caught.value.message
    assert (volumes(b), parts(b)) == ({}, [])


def test_a_template_goes_along_once_and_is_known_by_its_content_from_then_on(lab, tmp_path):
    a, b = lab.hosts
    here, there = a.folder / "pool" / "base.qcow2", b.folder / "pool" / "base.qcow2"
    raw = content(tmp_path / "content.raw")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, here], check=True)
    overlay = ["-F", "qcow2", "-b", "base.qcow2", here.with_name("tern-vda.qcow2")]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *overlay], check=True)
    disk = {"name": "vda", "pool": LOCAL_POOL, "volume": "tern-vda.qcow2"}
    base = [{"volume": "base.qcow2"}]
    a.client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "disks": [disk | {"base": base}]})
    wanted = virtual(here, tmp_path)
    try:
        first = ended(a, move(a, b))
        assert first["state"] == "succeeded", first["error"]
        assert first["result"]["bytes_disks"] > DATA
        assert (list(volumes(a)), sorted(volumes(b))) == (
            ["base.qcow2"],
            [there.name, disk["volume"]],
        )
        assert virtual(volumes(b)[disk["volume"]], tmp_path) == wanted

        back = ended(b, move(b, a))
        assert back["state"] == "succeeded", back["error"]
        assert back["result"]["bytes_disks"] < MIB
        assert (sorted(volumes(a)), list(volumes(b))) == ([here.name, disk["volume"]], [there.name])

        with there.open("r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"other")
        before = there.read_bytes()
        refused = ended(a, move(a, b))
        assert refused["state"] == "failed"
        assert "base.qcow2 on hv-b is not the same as the template" in refused["error"]["title"]
        assert "--flatten" in refused["error"]["hint"]
        assert there.read_bytes() == before
        assert is_off_and_only_on(lab, a)
        assert (list(volumes(b)), parts(b)) == ([there.name], [])
        assert virtual(volumes(a)[disk["volume"]], tmp_path) == wanted
    finally:
        for path in (here, there):
            path.unlink(missing_ok=True)


def test_a_disk_that_another_program_has_open_keeps_its_vm_here(lab, two):
    a, b, _hashes, _sizes = two
    path = volumes(a)["tern-vda.qcow2"]
    with subprocess.Popen(["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE) as other:
        wait_until(lambda: image.is_in_use(path), "it is open")
        with pytest.raises(MoveRefused, match="has local/tern-vda"):
            move(a, b)
        with pytest.raises(StorageMoveRefused):
            a.client.post("/v1/vms/tern/storage-moves", {"disks": {"vda": {"format": "raw"}}})
        other.communicate()
    assert ended(a, move(a, b))["state"] == "succeeded"


def test_a_disk_that_is_off_and_becomes_raw_is_warned_of_its_bitmaps(two):
    a = two[0]
    path = volumes(a)["tern-vda.qcow2"]
    subprocess.run(["qemu-img", "bitmap", "--add", path, "daily"], check=True)
    wishes = {"disks": {"vda": {"format": "raw"}}}
    done = ended(a, dict(a.client.post("/v1/vms/tern/storage-moves", wishes)))
    assert done["state"] == "warned", done
    said = a.client.get(f"/v1/operations/{done['id']}/log")
    assert any("daily" in line["text"] for line in said), said


def test_two_vms_that_arrive_at_once_never_share_a_file(lab, tmp_path):
    """The second one is refused, and what is cleared away for it is not the first one's disk."""
    a, b = lab.hosts
    image = str(content(tmp_path / "content.raw", 64 * MIB))
    for name, pool in (("tern", LOCAL_POOL), ("skua", SHARED_POOL)):
        disk = {"name": "vda", "pool": pool, "volume": "root.raw", "format": "raw", "image": image}
        a.client.post("/v1/vms", {"name": name, "memory": "64MiB", "disks": [disk]})
    first = move(a, b, bandwidth=8 * MIB)
    wait_until(lambda: parts(b), "the first one's file is on its way")
    with pytest.raises(MoveRefused) as caught:
        there = {"vda": {"pool": LOCAL_POOL}}
        a.client.post("/v1/vms/skua/moves", {"target": b.name, "disks": there})
    assert [found["id"] for found in caught.value.facts["findings"]] == ["volume.exists"]
    done = ended(a, first)
    assert done["state"] == "succeeded", done["error"]
    assert volumes(b)["root.raw"].read_bytes() == Path(image).read_bytes()
