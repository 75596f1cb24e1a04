"""A VM goes into a folder and comes back: the same one, a second one, or where it lies."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from points import dies_at

from moving import Load, Traveller, traveller, wait_until
from sterna.errors import Conflict, ExportRefused, ImportRefused, NotAnExport, NotFound
from sterna.lab import demo
from sterna.lab.disklog import check
from sterna.lab.hosts import LOCAL_POOL, Host

pytestmark = pytest.mark.functional

LOAD = Load(
    disk_blocks_s=100, disks=2, disk_mb=16, formats=("qcow2", "raw"), pool=LOCAL_POOL, span_mb=8
)


class Shelf:
    """One host, and a place for folders."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder

    def ended(self, operation: dict[str, Any]) -> dict[str, Any]:
        path = f"/v1/operations/{operation['id']}"
        return dict(self.host.client.get(path, {"wait": 60}, wait_s=90))

    def export(self, folder: str, vm: str = "tern", **wishes: Any) -> dict[str, Any]:
        body = {"folder": str(self.folder / folder), **wishes}
        return self.ended(self.host.client.post(f"/v1/vms/{vm}/exports", body))

    def import_(self, folder: str, **wishes: Any) -> dict[str, Any]:
        body = {"folder": str(self.folder / folder), **wishes}
        return self.ended(self.host.client.post("/v1/imports", body))

    def refused(self, folder: str, **wishes: Any) -> list[str]:
        """Ids of the blockers; the check alone says the same."""
        body = {"folder": str(self.folder / folder), **wishes}
        found = self.host.client.post("/v1/imports:check", body)
        with pytest.raises(ImportRefused) as caught:
            ended = self.ended(self.host.client.post("/v1/imports", body))
            assert ended["error"]["code"] == "import.refused", ended
            raise ImportRefused(**ended["error"]["facts"])
        assert caught.value.facts["findings"] == found
        assert all(one["fix"] for one in found)
        return [one["id"] for one in found if one["severity"] == "blocker"]

    def pool(self) -> set[str]:
        found = (self.host.folder / "pool").iterdir()
        return {path.name for path in found if not path.name.startswith(".")}

    def view(self, vm: str = "tern") -> dict[str, Any]:
        return dict(self.host.client.get(f"/v1/vms/{vm}"))


def empty(pool: Path) -> None:
    """Without what other tests have left."""
    for path in pool.iterdir():
        if not path.name.startswith("."):
            path.unlink()


@pytest.fixture
def shelf(lab, tmp_path) -> Iterator[Shelf]:
    host = lab.hosts[0]
    empty(host.folder / "pool")
    yield Shelf(host, tmp_path)
    for vm in host.client.get("/v1/vms"):
        if vm["state"] != "off":
            stop = host.client.post(f"/v1/vms/{vm['name']}:stop", {"force": True})
            host.client.get(f"/v1/operations/{stop['id']}", {"wait": 20})
        host.client.delete(f"/v1/vms/{vm['name']}")
    with contextlib.suppress(NotFound):
        host.client.delete("/v1/pools/lying")
    empty(host.folder / "pool")


def must_have_every_block(guest: Traveller, host: Host) -> dict[str, int]:
    """All that the guest was told is written is in the images; it is off afterwards."""
    guest.ask(host, "disk off")
    status = guest.ask(host, "status")["disks"]
    durable = {disk: one["durable"] for disk, one in status.items()}
    guest.power_off(host)
    must_be_whole(guest, host, durable)
    return durable


def must_be_whole(guest: Traveller, host: Host, durable: dict[str, int]) -> None:
    """The images have these blocks; it is off."""
    pools = {one["pool"]["name"]: Path(one["pool"]["path"]) for one in host.client.get("/v1/pools")}
    for disk in host.client.get(f"/v1/vms/{guest.name}")["spec"]["disks"]:
        log = check(pools[disk["pool"]] / disk["volume"], disk["name"])
        assert log.proves(durable[disk["name"]]), log
        assert log.highest > 0


def boots(guest: Traveller, host: Host) -> None:
    began = time.time_ns()
    host.client.post(f"/v1/vms/{guest.name}:start")
    guest.boot = guest.witness.wait_beat(began).boot_id


def test_a_vm_is_exported_while_it_runs_and_comes_back_with_its_identity_or_beside_it(lab, shelf):
    host, client = shelf.host, shelf.host.client
    with traveller(lab, LOAD) as guest:
        guest.ask(host, "status")
        wait_until(lambda: guest.ask(host, "status")["disk"]["durable"] > 20, "it has written")
        before = guest.ask(host, "status")["disks"]
        live = shelf.export("live")
        assert live["state"] == "succeeded", live
        assert (live["result"]["live"], live["result"]["files"]) == (True, 2)
        assert client.get("/v1/vms/tern/checkpoints") == []
        assert shelf.pool() == {"tern-vda.qcow2", "tern-vdb.raw"}
        guest.must_run_once_on(host)
        for disk, name in (("vda", "tern-vda.qcow2"), ("vdb", "tern-vdb.raw")):
            log = check(shelf.folder / "live" / "disks" / name, disk)
            assert log.proves(before[disk]["durable"]), log

        # Beside the original, which runs on.
        assert "import.same-vm" in shelf.refused("live", name="gull")
        assert "import.name-taken" in shelf.refused("live", new_identity=True)
        second = shelf.import_("live", new_identity=True, name="gull")
        assert second["state"] == "succeeded", second
        assert {"gull-vda.qcow2", "gull-vdb.raw"} < shelf.pool()
        assert shelf.view("gull")["id"] != shelf.view()["id"]
        assert (
            shelf.view("gull")["spec"]["nics"][0]["mac"] != shelf.view()["spec"]["nics"][0]["mac"]
        )
        client.post("/v1/vms/gull:start")
        assert [len(demo.qemus(host.netns, name)) for name in ("tern", "gull")] == [1, 1]
        stop = client.post("/v1/vms/gull:stop", {"force": True})
        assert shelf.ended(stop)["state"] == "succeeded"
        client.delete("/v1/vms/gull")
        written = must_have_every_block(guest, host)

        # With checkpoints; the original deleted.
        made = shelf.ended(client.post("/v1/vms/tern/checkpoints", {"name": "one"}))
        assert made["state"] == "succeeded"
        assert shelf.export("whole")["state"] == "succeeded"
        identity = shelf.view()["id"]
        client.delete("/v1/vms/tern")
        assert shelf.pool() == set()
        back = shelf.import_("whole")
        assert back["state"] == "succeeded", back
        assert (shelf.view()["id"], shelf.view()["checkpoints"]) == (identity, ["one"])
        assert client.post("/v1/disk-check")["findings"] == []
        must_be_whole(guest, host, written)
        boots(guest, host)
        must_have_every_block(guest, host)

        # Where it lies.
        client.delete("/v1/vms/tern")
        there = shelf.import_("whole", register=True, pool="lying")
        assert there["state"] == "succeeded", there
        assert shelf.pool() == set()
        boots(guest, host)
        with pytest.raises(NotAnExport):
            shelf.import_("whole", register=True, new_identity=True, name="gull")
        must_have_every_block(guest, host)
        assert client.post("/v1/disk-check", {"vms": ["tern"]})["outcome"] == "well"


def test_a_daemon_that_dies_in_a_live_export_leaves_neither_folder_nor_checkpoint(
    lab, shelf, monkeypatch
):
    host = shelf.host
    with traveller(lab, LOAD) as guest:
        guest.ask(host, "status")
        point, body = "export-copying", {"folder": str(shelf.folder / "live")}
        ended = dies_at(host, monkeypatch, point, "/v1/vms/tern/exports", **body)
        assert ended["error"]["code"] == "export.failed", ended

        def is_merged() -> bool:
            return shelf.pool() == {"tern-vda.qcow2", "tern-vdb.raw"}

        wait_until(is_merged, "the checkpoint of the export is merged")
        assert host.client.get("/v1/vms/tern/checkpoints") == []
        assert list(shelf.folder.iterdir()) == []
        wait_until(
            lambda: not list((host.folder / "state" / "ports").iterdir()), "nothing is noted"
        )
        assert shelf.export("live/")["state"] == "succeeded"
        guest.must_run_once_on(host)
        must_have_every_block(guest, host)


def test_what_an_import_lacks_is_known_before_it_changes_anything(shelf):
    host, client = shelf.host, shelf.host.client
    disk = {"name": "vda", "pool": LOCAL_POOL, "size": "8MiB"}
    nic = {"name": "net0", "switch": "lan"}
    client.post("/v1/vms", {"name": "tern", "memory": "64MiB", "disks": [disk], "nics": [nic]})
    assert shelf.export("one")["state"] == "succeeded"
    with pytest.raises(ExportRefused):
        shelf.export("one")
    with pytest.raises(ExportRefused):
        shelf.export("none/one")
    with pytest.raises(NotAnExport):
        shelf.import_("none")
    client.delete("/v1/vms/tern?keep_disks=true")

    assert shelf.refused("one") == ["import.file-exists"]
    (host.folder / "pool" / "tern-vda.qcow2").unlink()
    assert shelf.refused("one", pool="gone") == ["import.pool-missing"]
    assert shelf.refused("one", switches={"lan": "gone"}) == ["import.switch"]
    folder = shelf.folder / "one"
    image, manifest = folder / "disks" / "tern-vda.qcow2", folder / "sterna-vm.json"

    content = image.read_bytes()
    image.write_bytes(content[:-1] + b"x")
    assert shelf.refused("one") == ["import.file-differs"]
    image.write_bytes(content + b"x")
    assert shelf.refused("one") == ["import.file-differs"]
    image.unlink()
    image.symlink_to("/etc/hostname")
    assert shelf.refused("one") == ["import.file-missing"]
    image.unlink()
    image.write_bytes(content)

    def changed(**spec: Any) -> str:
        data = json.loads(manifest.read_text())
        data["spec"] |= spec
        shutil.copytree(folder, shelf.folder / "other", dirs_exist_ok=True)
        (shelf.folder / "other" / "sterna-vm.json").write_text(json.dumps(data))
        return "other"

    assert shelf.refused(changed(machine="pc-q35-99.0")) == ["import.machine"]
    boot = {"kernel": "/none/vmlinuz"}
    assert shelf.refused(changed(boot=boot)) == ["import.boot-missing"]
    for identity in ("../../../../outside", "a/b"):
        with pytest.raises(NotAnExport):
            shelf.import_(changed(id=identity))
    assert shelf.refused("one", pools={"gone": LOCAL_POOL})[0] == "import.pool-unknown"
    with pytest.raises(NotAnExport):
        shelf.import_(changed(disks=[disk | {"volume": "another.qcow2"}]))
    assert shelf.pool() == set()

    # A copy that is cancelled leaves nothing; the name is free again.
    assert shelf.import_("one")["state"] == "succeeded"
    with pytest.raises(Conflict):
        client.post("/v1/vms", {"name": "tern", "memory": "64MiB"})
    assert (
        shelf.import_("one", register=True, new_identity=True, name="lying")["state"] == "succeeded"
    )
    assert manifest.with_name("sterna-vm.json.registered").exists()
