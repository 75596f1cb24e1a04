"""What is wrong with images is found, named and has a fix: each kind of break is planted here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moving import record_of, wait_until
from sterna.lab.hosts import LOCAL_POOL, Host
from sterna.qemu import image

pytestmark = pytest.mark.functional


class Shelf:
    """A VM that is off, with a template and two checkpoints, and what is said of its images."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.folder / "pool"

    def image(self, name: str, *arguments: str) -> None:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", name, *arguments]
        subprocess.run(argv, cwd=self.folder, check=True)

    def make(self) -> list[Path]:
        """The chain, the top first."""
        client = self.host.client
        self.image("golden.qcow2", "8M")
        disk = {"name": "vda", "pool": LOCAL_POOL, "base": [{"volume": "golden.qcow2"}]}
        client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "disks": [disk]})
        for name in ("one", "two"):
            operation = client.post("/v1/vms/tern/checkpoints", {"name": name})
            path = f"/v1/operations/{operation['id']}"
            assert client.get(path, {"wait": 30}, wait_s=60)["state"] == "succeeded"
        points = client.get("/v1/vms/tern/checkpoints")
        (top,) = client.get("/v1/vms/tern")["spec"]["disks"]
        frozen = [one["disks"]["vda"] for one in reversed(points)]
        return [self.folder / name for name in (top["volume"], *frozen, "golden.qcow2")]

    def check(self, **wishes: Any) -> dict[str, Any]:
        return dict(self.host.client.post("/v1/disk-check", wishes))

    def found(self, **wishes: Any) -> list[tuple[str, str]]:
        """Finding and file of each."""
        report = self.check(**wishes)
        worst = {one["severity"] for one in report["findings"]}
        outcome = "broken" if "blocker" in worst else "warned" if "warning" in worst else "well"
        assert report["outcome"] == outcome
        assert all(one["fix"] for one in report["findings"])
        return [(one["id"], one["place"].partition("/")[2]) for one in report["findings"]]


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
    host = found.host
    host.start()
    host.wait_ready()
    for vm in host.client.get("/v1/vms"):
        host.client.delete(f"/v1/vms/{vm['name']}")
    empty(found.folder)


def test_a_link_out_of_the_pool_is_a_finding_and_what_another_program_writes_is_not_frozen(shelf):
    top, *_ = shelf.make()
    with subprocess.Popen(["qemu-io", "-f", "qcow2", top], stdin=subprocess.PIPE) as other:
        wait_until(lambda: image.is_in_use(top), "it is open")
        operation = shelf.host.client.post("/v1/vms/tern/checkpoints", {"name": "three"})
        path = f"/v1/operations/{operation['id']}"
        ended = shelf.host.client.get(path, {"wait": 30}, wait_s=60)
        assert ended["error"]["code"] == "checkpoint.refused", ended
        other.communicate()
    golden = shelf.folder / "golden.qcow2"
    aside = golden.rename(golden.with_suffix(".aside"))
    operation = shelf.host.client.post("/v1/vms/tern/checkpoints", {"name": "three"})
    path = f"/v1/operations/{operation['id']}"
    ended = shelf.host.client.get(path, {"wait": 30}, wait_s=60)
    assert ended["error"]["code"] == "image.missing", ended
    aside.rename(golden)
    aside = top.rename(top.with_suffix(".aside"))
    top.symlink_to("/etc/hostname")
    assert ("disk.unreadable", top.name) in shelf.found(vms=["tern"])
    top.unlink()
    aside.rename(top)


def test_the_first_broken_link_of_a_chain_is_named_with_its_fix(shelf):
    top, second, first, golden = shelf.make()
    report = shelf.check()
    assert (report["outcome"], report["images"], report["findings"]) == ("well", 4, [])

    def rebase(path: Path, below: str) -> None:
        argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, path.name]
        subprocess.run(argv, cwd=shelf.folder, check=True)

    for path, finding in ((top, "image"), (first, "image"), (golden, "template")):
        away = path.with_name("away")
        path.rename(away)
        assert shelf.found()[0] == (f"disk.{finding}-missing", path.name)
        away.rename(path)

    before = second.read_bytes(), second.stat()
    rebase(second, golden.name)
    assert ("disk.wrong-parent", second.name) in shelf.found()
    rebase(second, top.name)
    assert ("disk.loop", second.name) in shelf.found()
    second.write_bytes(before[0])
    assert shelf.found() == [
        ("disk.parent-changed", second.name)
    ]  # honest: its content is as before
    os.utime(second, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert shelf.found() == []

    golden.touch()
    assert shelf.found(vms=["tern"]) == [("disk.parent-changed", golden.name)]
    assert shelf.found(vms=["tern"], trust=True) == []
    subprocess.run(["qemu-img", "resize", "-q", golden, "16M"], check=True)
    assert ("disk.wrong-size", first.name) in shelf.found()
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", golden, "8M"], check=True)
    assert shelf.found(trust=True) == []

    content = top.read_bytes()
    top.write_bytes(b"no image" + content[8:])
    assert shelf.found()[0] == ("disk.wrong-format", top.name)
    tables = int.from_bytes(content[40:48], "big")  # of the L1 table: made to point to nowhere
    top.write_bytes(
        content[:tables] + (1 << 63 | 1 << 40).to_bytes(8, "big") + content[tables + 8 :]
    )
    assert shelf.found()[0] == ("disk.corrupt", top.name)
    top.write_bytes(content)
    assert shelf.found() == []


def test_memory_that_was_changed_and_files_of_nobody_are_found(shelf):
    shelf.make()
    state = shelf.folder / "tern.mem"
    state.write_bytes(b"memory")
    (shelf.folder / "stray.qcow2").write_bytes(b"")
    assert shelf.found() == [("disk.unused", "stray.qcow2"), ("disk.unused", "tern.mem")]
    record = record_of(shelf.host)
    shelf.host.stop()
    data = json.loads(record.read_text())
    place = {"pool": LOCAL_POOL, "volume": state.name}
    data["saved"] = {**place, "size": 6, "sha256": "0" * 64, "accel": "tcg"}
    record.write_text(json.dumps(data))
    shelf.host.start()
    shelf.host.wait_ready()
    assert shelf.found(vms=["tern"]) == []
    report = shelf.check(vms=["tern"], is_deep=True)
    (finding,) = report["findings"]
    assert (report["outcome"], finding["id"]) == ("broken", "disk.state-damaged")
    assert "sterna vm discard tern" in finding["fix"]
    state.unlink()
    assert shelf.found(vms=["tern"]) == [("disk.state-damaged", state.name)]
    shelf.host.client.post("/v1/vms/tern:discard")
