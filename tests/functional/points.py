"""Words for tests of checkpoints and saved states: one guest on one host, with disks of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from moving import Load, Traveller, wait_until
from sterna.lab import hosts as lab_hosts
from sterna.lab.disklog import check
from sterna.lab.hosts import LOCAL_POOL, Host

CRASHING = Path(__file__).with_name("checkpoint_crashing.py")
LOAD = Load(
    memory_mb_s=10,
    memory_mb=32,
    disk_blocks_s=200,
    disks=2,
    formats=("qcow2", "raw"),
    pool=LOCAL_POOL,
    span_mb=8,
)


class Points:
    """The checkpoints and files of one guest."""

    def __init__(self, guest: Traveller, host: Host) -> None:
        self.guest = guest
        self.host = host
        self.vm = f"/v1/vms/{guest.name}"

    def view(self) -> dict[str, Any]:
        return dict(self.host.client.get(self.vm))

    def names(self) -> list[str]:
        return [one["name"] for one in self.host.client.get(f"{self.vm}/checkpoints")]

    def do(self, action: str, state: str = "succeeded", **body: Any) -> dict[str, Any]:
        """An operation that is begun by a POST, when it has ended."""
        began = self.host.client.post(f"{self.vm}{action}", body or None)
        return self._ended(began, state)

    def create(self, name: str, state: str = "succeeded", **wishes: Any) -> dict[str, Any]:
        return self.do("/checkpoints", state, name=name, **wishes)

    def apply(self, name: str, **wishes: Any) -> dict[str, Any]:
        return self.do(f"/checkpoints/{name}:apply", **wishes)

    def delete(self, name: str, *, subtree: bool = False) -> dict[str, Any]:
        path = f"{self.vm}/checkpoints/{name}"
        return self._ended(self.host.client.delete(path, {"subtree": subtree}), "succeeded")

    def _ended(self, began: dict[str, Any], state: str) -> dict[str, Any]:
        ended = self.guest.ended(self.host, began)
        assert ended["state"] == state, ended
        return ended

    def files(self) -> set[str]:
        """All files of the pool."""
        return {path.name for path in (self.host.folder / "pool").iterdir()} - {".sterna-pool.json"}

    def tops(self) -> dict[str, Path]:
        disks = self.view()["spec"]["disks"]
        return {disk["name"]: self.host.folder / "pool" / disk["volume"] for disk in disks}

    def durable(self) -> dict[str, int]:
        """The newest block of each disk that the guest was told is written."""
        disks = self.guest.ask(self.host, "status")["disks"]
        return {name: int(disk["durable"]) for name, disk in disks.items()}

    def must_be_well(self) -> None:
        """The same guest goes on, and finds its memory and all its blocks."""
        self.guest.must_run_once_on(self.host)
        verdict = self.guest.ask(self.host, "diskverify")
        assert verdict["bad"] == 0
        assert verdict["missing"] == 0

    def must_have_every_block(self) -> None:
        """All that the guest was told is written is in the images; it is off afterwards."""
        self.guest.ask(self.host, "disk off")
        durable = self.durable()
        self.guest.power_off(self.host)
        for name, path in self.tops().items():
            log = check(path, name)
            assert durable[name] > 0
            assert log.proves(durable[name]), (name, durable[name], log)

    def must_have_no_work_left(self) -> None:
        """The record names no file in the making or on its way out."""
        record = self.host.folder / "state" / "vms" / f"{self.view()['id']}.json"
        assert '"made": []' in record.read_text()
        assert '"leaving": []' in record.read_text()


def dies_at(
    host: Host, monkeypatch: Any, point: str, path: str, method: str = "post", **body: Any
) -> dict[str, Any]:
    """The operation, as it is settled by the daemon after the one that died at `point`."""
    host.stop()
    with monkeypatch.context() as patched:
        command = [sys.executable, str(CRASHING), point]
        patched.setattr(lab_hosts, "_daemon", lambda: command)
        host.start()
        host.wait_ready()
    client = host.client
    operation = client.delete(path) if method == "delete" else client.post(path, body or None)
    wait_until(lambda: host.process is None, "the daemon has ended itself")
    host.start()
    host.wait_ready()
    return dict(client.get(f"/v1/operations/{operation['id']}", {"wait": 60}, wait_s=90))
