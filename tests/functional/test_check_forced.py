"""Moves that checks forbid, tried all the same: each fails or hurts as the check said."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checking import (
    EYES,
    Administrator,
    closed_port,
    configured,
    fill,
    ip,
    make,
    odd,
    restart,
    sent,
    watching,
)
from moving import a_twin, traveller, wait_until
from sterna.lab import vm
from sterna.lab.console import GuestConsole
from sterna.lab.hosts import LOCAL_POOL
from sterna.lab.links import Network
from sterna.lab.vm import Load
from sterna.units import MIB

pytestmark = [pytest.mark.functional, pytest.mark.long]  # make checks

BLIND = [
    *("host.outbound", "host.same", "network.switch-broken", "network.switch-differs"),
    *("network.blocked", "network.unreachable", "network.address-absent", "network.none-allowed"),
    *("network.mtu", "storage.cd-missing", "storage.pool-broken", "storage.disk-locked"),
    *("storage.disk-shared", "storage.snapshots-lost"),
    *("vm.busy", "vm.state"),
    *("pool.unusable", "switch.unusable"),  # as the target tells them
]


@pytest.fixture
def blind(lab):
    """Both hosts pass over those; who asks the first of them for a move."""
    here, there = lab.hosts
    with odd(here, blind=BLIND), odd(there, blind=BLIND):
        yield Administrator(here)


def fails(admin, there, *words: str, options: str = "") -> None:
    """The move does not succeed, says why, and the VM is where it was."""
    before = admin.host.client.get("/v1/vms/tern")["state"]
    done = admin.ask(f"sterna move tern {there.name} {options}")
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr
    assert [vm["state"] for vm in admin.host.client.get("/v1/vms")] == [before]
    assert there.client.get("/v1/vms") == []


def found(admin, there, options: str = "") -> set[str]:
    return {
        key
        for key, one in admin.finds("tern", there, options).items()
        if one["severity"] == "blocker"
    }


def test_a_pool_that_does_not_work(lab, blind, tmp_path):
    here, there = lab.hosts
    for host in lab.hosts:
        host.client.post("/v1/pools", {"name": "fast", "path": str(tmp_path / host.name)})
    make(here, pool="fast")
    (tmp_path / there.name).rename(tmp_path / "aside")
    assert found(blind, there) == {"storage.pool-broken"}
    fails(blind, there, "fast")
    (tmp_path / "aside").rename(tmp_path / there.name)
    here.client.delete("/v1/vms/tern")
    for host in lab.hosts:
        host.client.delete("/v1/pools/fast")


def test_a_cd_that_is_gone(lab, blind):
    here, there = lab.hosts
    iso = here.folder / "pool" / "a.iso"
    iso.write_bytes(b"a" * 2048)
    make(here, cds=[{"name": "cd0", "pool": LOCAL_POOL, "volume": "a.iso"}])
    iso.unlink()
    assert found(blind, there) == {"storage.cd-missing"}
    blind.moves("tern", there)
    refused = blind.ask(f"sterna --host {there.name} vm start tern")
    assert refused.returncode != 0
    assert "a.iso" in refused.stderr


def test_a_host_that_sends_nothing(lab, blind):
    here, there = lab.hosts
    make(here)
    here.client.patch("/v1/host/settings", {"outbound": False})
    assert found(blind, there) == {"host.outbound"}
    blind.moves("tern", there)  # it leaves, although its host was told to let none go
    here.client.patch("/v1/host/settings", {"outbound": True})


def test_a_switch_that_does_not_work(lab, blind):
    here, there = lab.hosts
    make(here)
    subprocess.run(there.command(["ip", "link", "set", "data0", "name", "data9"]), check=True)
    try:
        assert found(blind, there) == {"network.switch-broken"}
        blind.moves("tern", there)
        refused = blind.ask(f"sterna --host {there.name} vm start tern")
        assert refused.returncode != 0
        assert "data0" in refused.stderr
    finally:
        subprocess.run(there.command(["ip", "link", "set", "data9", "name", "data0"]), check=True)


def test_snapshots_that_another_format_cannot_hold(lab, blind):
    here, there = lab.hosts
    make(here)
    image = str(here.folder / "pool" / "tern-vda.qcow2")
    subprocess.run(["qemu-img", "snapshot", "-c", "before", image], check=True)
    here.client.post("/v1/vms/tern:start")
    options = f"--disk vda={LOCAL_POOL}:raw"
    assert found(blind, there, options) == {"storage.snapshots-lost"}
    blind.moves("tern", there, options)
    there_now = there.folder / "pool" / "tern-vda.raw"
    told = subprocess.run(
        ["qemu-img", "snapshot", "-U", "-l", "-f", "raw", there_now],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "before" not in told.stdout  # lost


def test_the_host_where_it_is(lab, blind):
    here, _ = lab.hosts
    make(here)
    assert found(blind, here) == {"host.same"}
    done = blind.ask(f"sterna move tern {here.name}")
    assert done.returncode != 0
    assert [vm["state"] for vm in here.client.get("/v1/vms")] == ["off"]


def test_a_host_of_another_api(lab):
    """It lacks what this one would ask of it."""
    here, there = lab.hosts
    make(here)
    with odd(there, api=2, lacks=["/v1/peer/reservations"]), odd(here, blind=["host.api"]):
        admin = Administrator(here)
        assert found(admin, there) == {"host.api"}
        fails(admin, there, "/v1/peer/reservations")


def test_memory_that_the_target_keeps_for_itself(lab):
    """The guest takes more than the target had to give: what it was to keep is broken into."""
    here, there = lab.hosts
    load = Load(memory_mb_s=200, memory_mb=900)
    here.client.post("/v1/vms", vm.spec(lab.guest(), "tern", memory=1280 * MIB, load=load))
    here.client.post("/v1/vms/tern:start")
    wait_until(lambda: taken(here) > 900 * MIB, "it has written to its memory", timeout_s=60)
    ordered(here, "mem off")
    free = there.client.get("/v1/host")["memory_free"]  # beyond what it keeps by default
    blind = ["host.memory", "vm.wrong-state"]
    kept = ("[migration]", f'[migration]\nreserve_memory = "{free + 256 * MIB}"')
    with configured(there, kept), odd(here, blind=blind), odd(there, blind=blind):
        admin = Administrator(here)
        (finding,) = admin.finds("tern", there).values()
        assert finding["id"] == "host.memory"
        given = there.client.get("/v1/host")["memory_free"]
        admin.moves("tern", there)
        assert taken(there) > 900 * MIB > given


def ordered(host, order: str) -> None:
    """What its guest shall do."""
    console = Path(host.client.get("/v1/vms/tern")["console"])

    async def ordering() -> None:
        async with GuestConsole(console) as guest:
            await guest.ask(order)

    asyncio.run(ordering())


def taken(host) -> int:
    """Bytes of memory that the QEMU of its VM has."""
    pid = host.client.get("/v1/vms/tern")["process"]["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def test_memory_that_is_sent_in_clear(lab):
    """Who sees the wire reads the guest's memory; and does not, if it is encrypted as it should be."""
    here, there = lab.hosts
    canary = f"canary-{secrets.token_hex(8)}"
    spec = vm.spec(lab.guest(), "tern")
    spec["boot"]["cmdline"] += f" {canary}"
    here.client.post("/v1/vms", spec)
    here.client.post("/v1/vms/tern:start")
    blind = ["host.encryption", "move.encryption-required"]
    with odd(here, blind=blind), odd(there, blind=blind):
        here.client.patch("/v1/host/settings", {"encryption": "off"})
        there.client.patch("/v1/host/settings", {"encryption": "required"})
        admin, back = Administrator(here), Administrator(there)
        assert found(admin, there, "--carrier direct") == {"host.encryption"}
        with watching(there, canary) as clear:
            admin.moves("tern", there, "--carrier direct")
        here.client.patch("/v1/host/settings", {"encryption": "required"})
        with watching(there, canary) as encrypted:
            back.moves("tern", here, "--carrier direct")
    assert clear.found > 0
    assert encrypted.found == 0
    assert encrypted.seen > 1 << 20  # the wire was seen


def test_ways_that_do_not_connect(lab, blind):
    here, there = lab.hosts
    address = there.migration_address
    here.client.post("/v1/vms", vm.spec(lab.guest(), "tern"))
    here.client.post("/v1/vms/tern:start")
    with closed_port(there):
        assert found(blind, there) == {"network.blocked"}
        fails(blind, there, "could not be connected to")
    lab.cut(there.name, Network.MIGRATION)
    assert found(blind, there) == {"network.unreachable"}
    fails(blind, there)
    lab.restore(there.name, Network.MIGRATION)
    wait_until(lambda: found(blind, there) == set(), "the way is open again")
    ip(there, f"addr del {address}/24 dev mig0")
    try:
        assert found(blind, there) == {"network.address-absent"}
        fails(blind, there)
    finally:
        ip(there, f"addr add {address}/24 dev mig0")


def test_a_way_that_its_host_shall_not_use(make_lab, tmp_path):
    lab = make_lab(migrations=2)
    here, there = lab.hosts
    make(here)
    here.client.patch("/v1/host/settings", {"migration_networks": ["10.92.0.0/24"]})
    there.client.patch("/v1/host/settings", {"migration_networks": ["10.94.0.0/24"]})
    with odd(here, blind=["network.none-allowed"]):
        admin = Administrator(here)
        assert found(admin, there) == {"network.none-allowed"}
        noise = tmp_path / "noise"
        noise.write_bytes(os.urandom(8 << 20))
        fill(here, "tern", f"-s {noise} 0 8M")
        before = sent(here, "mig0")
        admin.moves("tern", there)
    assert sent(here, "mig0") - before < 1 << 20  # 8 MiB went where they were not to go


def test_hosts_that_do_not_trust_each_other(lab):
    """No check can be passed over here: who is not known gets no answer, whatever is asked."""
    here, there = lab.hosts
    make(here)
    trust = ["trust.not-mutual", "trust.certificate-other", "trust.certificate-expired"]
    Administrator(there).run(f"sterna host distrust {here.name}")
    with odd(here, blind=trust):
        admin = Administrator(here)
        assert found(admin, there) == {"trust.not-mutual"}
        fails(admin, there, "does not trust")
    token = json.loads(Administrator(here).run("sterna host invite -o json"))["token"]
    Administrator(there).run(f"sterna host join {token}")


def test_packets_that_are_too_large_there(lab, blind):
    _, there = lab.hosts
    with traveller(lab, Load()) as guest:
        assert is_reached(lab, 1500)
        ip(there, "link set data0 mtu 1400")
        try:
            assert found(blind, there) == {"network.mtu"}
            blind.moves("tern", there)
            guest.must_run_once_on(there)
            assert is_reached(lab, 1300)
            assert not is_reached(lab, 1500)
        finally:
            ip(there, "link set data0 mtu 1500")


def test_a_switch_that_leads_elsewhere(lab, blind):
    _, there = lab.hosts
    there.client.delete("/v1/switches/lan")
    there.client.post("/v1/switches", {"name": "lan"})
    with traveller(lab, Load()):
        assert is_reached(lab, 100)
        assert found(blind, there) == {"network.switch-differs"}
        blind.moves("tern", there)
        assert there.client.get("/v1/vms/tern")["state"] == "running"
        assert not is_reached(lab, 100)  # nobody hears it any more


def test_a_disk_that_another_program_writes(lab, blind):
    """What it writes after the copy is lost, and nobody was told."""
    here, there = lab.hosts
    make(here)
    image = here.folder / "pool" / "tern-vda.qcow2"
    with subprocess.Popen(
        ["qemu-io", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdin.write("length\n")
        other.stdin.flush()
        other.stdout.readline()
        assert found(blind, there) == {"storage.disk-locked"}
        blind.moves("tern", there)
        other.communicate("write -P 7 0 64k\n")
    assert not holds(there.folder / "pool" / "tern-vda.qcow2")


def test_a_disk_of_two_vms(lab):
    here, there = lab.hosts
    make(here)
    with a_twin(here), odd(here, blind=BLIND):
        admin = Administrator(here)
        assert found(admin, there) == {"storage.disk-shared"}
        admin.moves("tern", there)
    mine, copy = (host.folder / "pool" / "tern-vda.qcow2" for host in lab.hosts)
    assert mine.exists()  # gull needs it still
    subprocess.run(["qemu-io", "-c", "write -P 7 0 64k", mine], check=True)
    assert not holds(copy)  # one disk has become two


def test_a_vm_that_something_else_is_done_with(lab, blind):
    here, there = lab.hosts
    here.client.post("/v1/vms", vm.spec(lab.guest(), "tern"))
    here.client.post("/v1/vms/tern:start")
    lab.shape(Network.MIGRATION, "2mbit")
    first = here.client.post("/v1/vms/tern/moves", {"target": there.name})
    assert "vm.busy" in found(blind, there)
    again = blind.ask(f"sterna move tern {there.name}")
    assert again.returncode != 0
    assert "is busy" in again.stderr
    here.client.post(f"/v1/operations/{first['id']}:cancel")
    lab.shape(Network.MIGRATION, None)
    here.client.get(f"/v1/operations/{first['id']}", {"wait": 30}, wait_s=60)


def test_a_qemu_that_does_not_answer(lab):
    here, there = lab.hosts
    make(here)
    here.client.post("/v1/vms/tern:start")
    pid = here.client.get("/v1/vms/tern")["process"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with odd(here, blind=BLIND):
            admin = Administrator(here)
            assert "vm.state" in found(admin, there)
            fails(admin, there)
    finally:
        os.kill(pid, signal.SIGCONT)
        restart(here)


def holds(image: Path) -> bool:
    """Whether what was written first is in the image."""
    read = ["qemu-io", "-r", "-c", "read -P 7 0 64k", image]
    return subprocess.run(read, check=False, capture_output=True).returncode == 0


# ---- eyes -----------------------------------------------------------------------------------


def is_reached(lab, size: int) -> bool:
    """Whether the guest answers the client beside it, by a packet of so many bytes."""
    argv = [sys.executable, str(EYES), "ping", vm.address(0), str(size)]
    inside = ["ip", "netns", "exec", lab.client_netns, *argv]
    return subprocess.run(inside, check=False).returncode == 0
