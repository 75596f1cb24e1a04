"""Moves by each carrier: encrypted, limited, changed on the way, and the guest is whole after it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from moving import Load, Traveller, traveller, wait_until
from sterna.errors import Conflict, MoveRefused
from sterna.lab import processes
from sterna.lab.hosts import LOCAL_POOL, Host
from sterna.lab.links import Network

pytestmark = pytest.mark.functional

CARRIERS = ("direct", "compression")
BUSY = Load(memory_mb_s=20, memory_mb=64)
DISKS = Load(
    memory_mb_s=10,
    memory_mb=32,
    disk_blocks_s=100,
    disks=2,
    pool=LOCAL_POOL,
    formats=("qcow2", "raw"),
)
SLOW = {"disks": 200_000, "memory": 5_000_000}  # bytes/s: there is time to look
# What guest and stream say in the clear. Four bytes alone would be in every tenth move by chance.
PLAIN = {"a guest's kernel": b"Linux version", "QEMU's stream": b"QEVM\0\0\0\3"}
SNIFFER = """
import json, socket, sys
listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
listener.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
listener.bind(("mig0", 0))
listener.settimeout(0.2)
words, found, hellos = json.loads(sys.argv[1]), set(), 0
print("ready", flush=True)
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        packet = listener.recv(1 << 17)
    except TimeoutError:
        continue
    found |= {name for name, word in words.items() if bytes.fromhex(word) in packet}
    hellos += b"\\x16\\x03\\x01" in packet[54:90] and b"\\x16\\x03" in packet[54:90]
print(json.dumps({"plain": sorted(found), "hellos": hellos}), flush=True)
"""


def relays(host: Host) -> list[processes.Process]:
    """The relays that run on a host."""
    inode = processes.network_namespace(host.process.pid) if host.process else None
    assert inode is not None
    return [
        one
        for one in processes.in_namespaces({inode})
        if "sterna.carrier.relay" in processes.command(one.pid)
    ]


@contextmanager
def sniffing(host: Host) -> Iterator[dict[str, Any]]:
    """What crosses a host's migration network until the block ends: filled in at its end."""
    words = json.dumps({name: word.hex() for name, word in PLAIN.items()})
    argv = [sys.executable, "-c", SNIFFER, words]
    process = subprocess.Popen(
        host.command(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    heard: dict[str, Any] = {}
    try:
        assert process.stdout.readline() == "ready\n"
        yield heard
        process.stdin.write("\n")
        process.stdin.flush()
        heard |= json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def restart_with(host: Host, setting: str) -> None:
    text = host.config.read_text()
    host.config.write_text(text.replace("[migration]\n", f"[migration]\n{setting}\n"))
    host.stop()
    host.start()
    host.wait_ready()


def must_be_clean(*hosts: Host) -> None:
    """No relay, no key, no socket of a move is left."""
    for host in hosts:
        wait_until(lambda host=host: not relays(host), f"no relay is left on {host.name}")
        left = [
            path
            for path in (host.folder / "run").rglob("*")
            if path.name.startswith(("move-", "relay-")) or path.name == "keys.psk"
        ]
        assert left == []


def moved(guest: Traveller, source: Host, target: Host, **wishes: Any) -> dict[str, Any]:
    done = guest.ended(source, guest.move(source, target, **wishes))
    assert done["state"] == "succeeded", done["error"]
    guest.must_run_once_on(target)
    return dict(done["result"])


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_busy_vm_goes_there_and_back_by_each_carrier_and_its_memory_is_whole(lab, carrier):
    a, b = lab.hosts
    with traveller(lab, BUSY) as guest:
        for source, target in ((a, b), (b, a)):
            report = moved(guest, source, target, carrier=carrier)
            assert (report["carrier"], report["carrier_reason"]) == (carrier, "it was asked for")
            assert report["forecasts"].keys() == set(CARRIERS)
            assert report["bytes_wire"] > 5 << 20
            must_be_clean(a, b)
        if carrier == "compression":
            assert 0 < report["ratio"] < 0.8
            assert report["pages"]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_disks_and_checkpoints_go_by_each_carrier(lab, carrier):
    a, b = lab.hosts
    with traveller(lab, DISKS) as guest:
        operation = a.client.post("/v1/vms/tern/checkpoints", {"name": "before"})
        assert guest.ended(a, operation)["state"] == "succeeded"
        report = moved(guest, a, b, carrier=carrier)
        assert report["carrier"] == carrier
        assert report["bytes_disks"] > 0
        assert [one["name"] for one in b.client.get("/v1/vms/tern/checkpoints")] == ["before"]
        must_be_clean(a, b)
        moved(guest, b, a, carrier=carrier)
        guest.ask(a, "disk off")
        answer = guest.ask(a, "diskverify")
        for log in answer["disks"].values():
            assert (log["bad"], log["missing"]) == (0, 0)
            assert log["highest"] >= log["durable"] > 0


@pytest.mark.parametrize("carrier", CARRIERS)
def test_nothing_of_a_guest_crosses_the_network_in_the_clear(lab, carrier):
    a, b = lab.hosts
    with traveller(lab, DISKS) as guest:
        with sniffing(a) as heard:
            moved(guest, a, b, carrier=carrier, bandwidth=30_000_000, disk_copy="mirror")
        assert heard["plain"] == []
        assert heard["hellos"] >= 1


def test_without_encryption_it_would_be_seen_and_a_target_that_wants_it_refuses(make_lab):
    lab = make_lab()
    a, b = lab.hosts
    with traveller(lab, DISKS) as guest:
        restart_with(a, 'encryption = "off"')
        with pytest.raises(MoveRefused) as caught:
            guest.move(a, b, carrier="direct")
        assert caught.value.facts["findings"][0]["id"] == "host.encryption"
        restart_with(b, 'encryption = "off"')
        with sniffing(a) as heard:
            moved(guest, a, b, carrier="direct", bandwidth=30_000_000, disk_copy="mirror")
        assert heard["plain"] == sorted(PLAIN)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_limit_is_kept_and_can_be_changed_on_the_way(lab, carrier):
    a, b = lab.hosts

    def sent() -> int:
        text = subprocess.run(
            a.command(["cat", "/sys/class/net/mig0/statistics/tx_bytes"]),
            check=True,
            capture_output=True,
        )
        return int(text.stdout)

    lab.shape(Network.MIGRATION, "200mbit")  # QEMU's last copy knows no limit but this
    with traveller(lab, Load(memory_mb_s=60, memory_mb=120, pattern="random")) as guest:
        operation = guest.move(a, b, carrier=carrier, bandwidth=4_000_000, on_stall="wait")
        path = f"/v1/operations/{operation['id']}"

        def progress() -> dict[str, Any]:
            return dict(a.client.get(path)["progress"])

        wait_until(lambda: progress().get("bytes_wire", 0) > 2e6, "memory is on its way")
        assert progress()["limit"] == 4_000_000
        for limit in (4_000_000, 8_000_000):
            a.client.patch(path, {"bandwidth": limit})
            time.sleep(1)  # what was in the queues before
            began, before = time.monotonic(), sent()
            time.sleep(3)
            rate = (sent() - before) / (time.monotonic() - began)
            assert rate == pytest.approx(limit, rel=0.05), (carrier, limit, progress())
        a.client.patch(path, {"bandwidth": "none", "max_downtime_ms": 20_000})
        done = guest.ended(a, operation)
        assert done["state"] == "succeeded", done["error"]
        guest.must_run_once_on(b)
        log = [line["text"] for line in a.client.get(f"{path}/log")]
        assert any("no limit and a pause of at most 20" in line for line in log)
        with pytest.raises(Conflict):
            a.client.patch(path, {"bandwidth": "none"})


@pytest.mark.parametrize("end", ["a", "b"])
def test_a_relay_that_dies_undoes_the_move_with_its_words_and_the_guest_goes_on(lab, end):
    a, b = lab.hosts
    with traveller(lab, DISKS) as guest:
        for phase in ("disks", "memory"):
            operation = guest.move(
                a, b, carrier="compression", disk_copy="mirror", bandwidth=SLOW[phase]
            )
            wait_until(lambda: guest.phase_of(a, operation) == phase, f"it is in phase {phase}")  # noqa: B023
            path = f"/v1/operations/{operation['id']}"
            wait_until(lambda: a.client.get(path)["progress"].get("link") == "up", "it is up")  # noqa: B023
            for relay in relays(a if end == "a" else b):
                relay.signal(9)
            done = guest.ended(a, operation)
            assert done["state"] == "failed", done["error"]["title"]
            assert "relay" in done["error"]["title"], done["error"]
            guest.must_run_once_on(a)
            must_be_clean(a, b)


@pytest.mark.parametrize("phase", ["disks", "memory"])
def test_a_link_that_is_cut_for_a_while_is_waited_for_and_the_move_goes_on(lab, phase):
    a, b = lab.hosts
    with traveller(lab, DISKS) as guest:
        operation = guest.move(
            a, b, carrier="compression", disk_copy="mirror", bandwidth=SLOW[phase]
        )
        path = f"/v1/operations/{operation['id']}"
        wait_until(lambda: guest.phase_of(a, operation) == phase, f"it is in phase {phase}")
        wait_until(lambda: a.client.get(path)["progress"].get("link") == "up", "the link is up")
        lab.cut(b.name, Network.MIGRATION)
        wait_until(lambda: a.client.get(path)["progress"].get("link") == "down", "it is seen")
        time.sleep(8)
        assert a.client.get(path)["state"] == "running"
        lab.restore(b.name, Network.MIGRATION)
        a.client.patch(path, {"bandwidth": "none"})
        done = guest.ended(a, operation)
        assert done["state"] == "succeeded", done["error"]
        guest.must_run_once_on(b)
        must_be_clean(a, b)


def test_a_link_that_is_cut_for_longer_undoes_the_move_and_the_guest_never_stopped(lab):
    a, b = lab.hosts
    lab.shape(Network.MIGRATION, "80mbit")
    with traveller(lab, DISKS) as guest:
        operation = guest.move(a, b, carrier="compression", disk_copy="mirror")
        wait_until(lambda: guest.phase_of(a, operation) == "memory", "memory is on its way")
        began = time.time_ns()
        lab.cut(b.name, Network.MIGRATION)
        done = guest.ended(a, operation)
        assert done["state"] == "failed", done
        assert guest.witness.felt(began).felt_ms < 3000
        lab.restore(b.name, Network.MIGRATION)
        guest.must_run_once_on(a)
        must_be_clean(a, b)


def test_auto_measures_the_link_and_says_why(lab):
    a, b = lab.hosts
    with traveller(lab, BUSY) as guest:
        lab.shape(Network.MIGRATION, "100mbit")
        slow = moved(guest, a, b)
        assert slow["carrier"] == "compression", slow
        assert "the link carries" in slow["carrier_reason"]
        assert guest.move is not None
        lab.shape(Network.MIGRATION, None)
        fast = moved(guest, b, a)
        assert fast["forecasts"]["direct"]["total_s"] < slow["forecasts"]["direct"]["total_s"]


def test_memory_goes_over_several_connections_of_qemus_if_both_hosts_want_it(make_lab):
    lab = make_lab()
    a, b = lab.hosts
    for host, wished in ((a, 4), (b, 3)):
        restart_with(host, f"channels = {wished}")

    def has_all() -> bool:
        command = ["ss", "-Htn", "state", "established", "dst", b.migration_address]
        listed = subprocess.run(a.command(command), check=True, capture_output=True, text=True)
        return len(listed.stdout.splitlines()) >= 4  # three channels, and the main one

    with traveller(lab, BUSY) as guest:
        for _ in range(2):
            operation = guest.move(a, b, carrier="direct", bandwidth=SLOW["memory"])
            wait_until(has_all, "all channels are there")
            a.client.post(f"/v1/operations/{operation['id']}:cancel")
            assert guest.ended(a, operation)["state"] == "cancelled"
            guest.must_run_once_on(a)
        operation = guest.move(a, b, carrier="direct", bandwidth=SLOW["memory"])
        wait_until(has_all, "all channels are there")
        a.client.patch(f"/v1/operations/{operation['id']}", {"bandwidth": "none"})
        done = guest.ended(a, operation)
        assert done["state"] == "succeeded", done["error"]
        guest.must_run_once_on(b)
        assert guest.ask(b, "verify")["bad"] == 0
        back = guest.ended(b, guest.move(b, a, carrier="compression"))  # nothing of it is left on
        assert back["state"] == "succeeded", back["error"]
        assert guest.ask(a, "verify")["bad"] == 0
