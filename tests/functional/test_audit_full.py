"""The disk of the audit is full in the middle of a move: nothing new begins, the move is not harmed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from checking import Administrator, make, restart
from moving import Load, traveller, wait_until
from sterna.errors import AuditNotWritten
from sterna.lab.hosts import Host
from sterna.lab.links import Network

pytestmark = pytest.mark.functional


@contextlib.contextmanager
def small(host: Host) -> Iterator[Path]:
    """The host's audit on a file system of its own, with 256 KiB."""
    folder = host.folder / "state" / "audit"
    host.stop()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "audit", str(folder)]
    subprocess.run(mount, check=True)
    try:
        host.start()
        host.wait_ready()
        yield folder
    finally:
        host.stop()
        subprocess.run(["umount", str(folder)], check=True)
        restart(host)


def fill(host: Host, folder: Path) -> Path:
    """Until there is no room for another line; the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(AuditNotWritten, match="nothing was done"):
        for _ in range(100):  # the rest of the last page
            host.client.post("/v1/invitations", {})
    return filler


def test_nothing_new_begins_and_what_is_under_way_ends_well(lab):
    a, b = lab.hosts
    with small(a) as here, small(b) as there, traveller(lab, Load(memory_mb_s=5)) as guest:
        for host in (a, b):
            host.client.post("/v1/tokens", {"name": "stolen", "role": "admin"})
        lab.shape(Network.MIGRATION, "100mbit")
        move = guest.move(a, b)
        wait_until(lambda: guest.phase_of(a, move) == "memory", "the move to carry memory")
        fillers = [fill(a, here), fill(b, there)]
        for host in (a, b):
            vms = len(host.client.get("/v1/vms"))  # looking is always possible
            with pytest.raises(AuditNotWritten, match="nothing was done"):
                make(host, "tit")
            assert len(host.client.get("/v1/vms")) == vms
            with pytest.raises(AuditNotWritten):
                host.client.post("/v1/vms/tern:pause")
            host.client.delete("/v1/tokens/stolen")  # trust ends all the same
            assert host.client.get("/v1/tokens") == []
            assert any("audit" in one for one in host.client.get("/v1/host")["problems"])
        lab.shape(Network.MIGRATION, None)
        done = guest.ended(a, move)
        assert done["state"] == "succeeded", done["error"]
        guest.must_run_once_on(b)
        for filler in fillers:
            filler.unlink()
        a.client.post("/v1/invitations", {})
        b.client.post("/v1/vms/tern:pause")
        b.client.post("/v1/vms/tern:resume")
        late = [one for one in b.client.get("/v1/audit") if one.get("late")]
        assert any(one["path"].endswith(":take") for one in late)
        assert any(one["path"] == "/v1/tokens/stolen" and one["status"] == 204 for one in late)
        for host in (a, b):
            Administrator(host).run("sterna audit verify")
            assert not host.client.get("/v1/host")["problems"]
        assert guest.ended(b, guest.move(b, a))["state"] == "succeeded"
