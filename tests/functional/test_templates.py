"""Disks that are made on a template, or are there already: what is read, and what is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moving import wait_until
from sterna.errors import ImageMissing, SternaError, VolumeRefused
from sterna.lab.hosts import LOCAL_POOL, Host
from sterna.qemu import image

pytestmark = pytest.mark.functional


class Shelf:
    """The local pool of a host, without VMs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.folder / "pool"

    def image(self, name: str, *arguments: str, form: str = "qcow2") -> Path:
        argv = ["qemu-img", "create", "-q", "-f", form, *arguments]
        subprocess.run([*argv[:5], name, *argv[5:]], cwd=self.folder, check=True)
        return self.folder / name

    def create(self, name: str, **disk: Any) -> dict[str, Any]:
        body = {"name": name, "disks": [{"name": "vda", "pool": LOCAL_POOL, **disk}]}
        (made,) = self.host.client.post("/v1/vms", body)["spec"]["disks"]
        return dict(made)

    def refused(self, **disk: Any) -> str:
        with pytest.raises(VolumeRefused) as caught:
            self.create("gull", **disk)
        assert caught.value.advice
        return caught.value.message


def empty(pool: Path) -> None:
    """Without what other tests have left."""
    for path in pool.iterdir():
        if not path.name.startswith("."):
            path.unlink()


@pytest.fixture
def shelf(lab) -> Iterator[Shelf]:
    found = Shelf(lab.hosts[0])
    empty(found.folder)
    yield found
    for vm in found.host.client.get("/v1/vms"):
        found.host.client.delete(f"/v1/vms/{vm['name']}")
    empty(found.folder)


def test_a_template_is_shared_and_a_disk_that_is_there_tells_what_it_rests_on(shelf):
    shelf.image("floor.raw", "8M", form="raw")
    shelf.image("golden.qcow2", "-b", "floor.raw", "-F", "raw")
    base = [
        {"volume": "golden.qcow2", "format": "qcow2"},
        {"volume": "floor.raw", "format": "raw"},
    ]
    first = shelf.create("tern", base=[{"volume": "golden.qcow2"}], size="16MiB")
    assert (first["base"], first["size"]) == (base, 16 << 20)
    second = shelf.create("tern2", base=[{"volume": "golden.qcow2"}])
    assert (second["base"], second["size"]) == (base, 8 << 20)
    assert (shelf.folder / first["volume"]).stat().st_blocks * 512 < 1 << 20
    shelf.image("old.qcow2", "-b", str(shelf.folder / "golden.qcow2"), "-F", "qcow2")
    assert shelf.create("tern3", volume="old.qcow2")["base"] == base
    shelf.host.client.delete("/v1/vms/tern")
    assert (shelf.folder / "golden.qcow2").exists()


def test_what_cannot_be_a_disk_or_its_template_is_refused_with_the_reason(shelf, tmp_path):
    golden = shelf.image("golden.qcow2", "8M")
    own = shelf.create("tern", base=[{"volume": "golden.qcow2"}])["volume"]
    assert "in use by tern" in shelf.refused(volume=own)
    assert "may write to it" in shelf.refused(base=[{"volume": own}])
    assert "is a template" in shelf.refused(volume="golden.qcow2")
    assert "more than the 1 MiB wanted" in shelf.refused(
        base=[{"volume": golden.name}], size="1MiB"
    )
    raw = shelf.refused(base=[{"volume": golden.name}], format="raw", size="8MiB")
    assert "raw disk cannot rest" in raw
    with pytest.raises(ImageMissing):
        shelf.create("gull", base=[{"volume": "none.qcow2"}])
    with pytest.raises(ImageMissing):
        shelf.create("gull", volume="none.qcow2")

    far = tmp_path / "far.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", far, "8M"], check=True)
    shelf.image("lured.qcow2", "-b", str(far), "-F", "qcow2")
    assert "not in pool" in shelf.refused(volume="lured.qcow2")
    assert "not in pool" in shelf.refused(base=[{"volume": "lured.qcow2"}])
    shelf.image("deep.qcow2", "-b", "lured.qcow2", "-F", "qcow2")
    assert "not in pool" in shelf.refused(volume="deep.qcow2")
    shelf.image("orphan.qcow2", "-u", "-b", "gone.qcow2", "-F", "qcow2", "8M")
    assert "does not exist" in shelf.refused(volume="orphan.qcow2")
    shelf.image("ring.qcow2", "-u", "-b", "gnir.qcow2", "-F", "qcow2", "8M")
    shelf.image("gnir.qcow2", "-u", "-b", "ring.qcow2", "-F", "qcow2", "8M")
    assert "leads back" in shelf.refused(volume="ring.qcow2")
    shelf.image("data.qcow2", "-o", f"data_file={tmp_path / 'data'}", "8M")
    assert "in another file" in shelf.refused(volume="data.qcow2")
    shelf.image("plain.raw", "8M", form="raw")
    assert "not qcow2" in shelf.refused(volume="plain.raw")
    shelf.image("strange.vmdk", "8M", form="vmdk")
    assert "vmdk" in shelf.refused(base=[{"volume": "strange.vmdk"}])


def test_a_disk_that_another_program_has_open_is_refused(shelf, tmp_path):
    path, socket = shelf.image("held.raw", "8M", form="raw"), tmp_path / "e.sock"
    node = f"driver=file,filename={path},node-name=f"
    export = f"type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path={socket}"
    argv = ["qemu-storage-daemon", "--blockdev", node, "--export", export]
    with subprocess.Popen(argv) as other:
        wait_until(socket.exists, "another program has the disk open")
        try:
            assert image.is_written(path)
            assert "another program" in shelf.refused(volume=path.name, format="raw")
            assert "another program writes" in shelf.refused(base=[{"volume": path.name}])
        finally:
            other.terminate()
    assert not image.is_written(path)
    with pytest.raises(SternaError):
        shelf.create("gull", volume=path.name)  # it is raw
    assert shelf.create("gull", volume=path.name, format="raw")["base"] == []
