"""The lab itself: its networks, its daemons' lives, and that nothing of it is ever left behind."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sterna.errors import BadSpec, HostUnknown, LabExists, LabFailed, LabNotFound
from sterna.lab import lab as labs
from sterna.lab import netns, record
from sterna.lab.hosts import Host
from sterna.lab.lab import Lab, Wanted, find, leftovers, remove, sweep, up
from sterna.lab.links import Links, Network, host_address
from sterna.lab.processes import Process, identify
from sterna.lab.record import Record
from sterna.lab.witness import Witness

pytestmark = pytest.mark.functional

STERNA = [sys.executable, "-m", "sterna.cli.main"]
SERVE = """
import socket, sys
with socket.create_server((sys.argv[1], 9)) as server:
    print("ready", flush=True)
    while True:
        peer = server.accept()[0]
        with peer:
            while peer.recv(1 << 20):
                pass
            peer.sendall(b"!")
"""
SEND = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], 9), timeout=float(sys.argv[3])) as peer:
    peer.sendall(bytes(int(sys.argv[2])))
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b"!"
print(time.monotonic() - began)
"""
HOLD = "import time\nprint('ready', flush=True)\ntime.sleep(600)"


@contextlib.contextmanager
def running(namespace: str, code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a namespace, from when it says `ready`."""
    argv = [*netns.entering(namespace), sys.executable, "-c", code, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def send(namespace: str, address: str, size: int = 1, timeout_s: float = 5.0) -> float | None:
    """Seconds it takes to bring that many bytes there; None if they do not arrive."""
    argv = [
        *netns.entering(namespace),
        sys.executable,
        "-c",
        SEND,
        address,
        str(size),
        str(timeout_s),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def interfaces() -> str:
    """Of the namespace that the tests run in."""
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether `condition` came true in that time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def links(lab_name: str) -> Links:
    """The networks of a lab of two hosts, without daemons."""
    made = Links(lab_name, ["hv-a", "hv-b"])
    made.make()
    return made


def test_networks_join_the_hosts_and_stay_out_of_our_own_namespace(lab_name: str) -> None:
    before = interfaces()
    links = Links(lab_name, ["hv-a", "hv-b"])
    links.make()
    assert interfaces() == before
    for network in (Network.MANAGEMENT, Network.MIGRATION):
        address = host_address(network, 1)
        with running(netns.name(lab_name, "hv-b"), SERVE, address):
            assert send(netns.name(lab_name, "hv-a"), address) is not None
    remove(lab_name)
    assert leftovers(lab_name) == []
    assert interfaces() == before


def test_a_pulled_cable_carries_nothing_until_it_is_put_back(lab_name: str, links: Links) -> None:
    here, there = (netns.name(lab_name, host) for host in ("hv-a", "hv-b"))
    address = host_address(Network.MIGRATION, 1)
    with running(there, SERVE, address):
        assert send(here, address) is not None
        links.cut("hv-b", Network.MIGRATION)
        assert send(here, address, timeout_s=0.5) is None
        links.restore("hv-b", Network.MIGRATION)
        assert send(here, address) is not None


def test_a_cable_carries_no_more_than_its_rate_and_no_limit_lifts_it(
    lab_name: str, links: Links
) -> None:
    here, there = (netns.name(lab_name, host) for host in ("hv-a", "hv-b"))
    address = host_address(Network.MIGRATION, 1)
    with running(there, SERVE, address):
        links.shape(Network.MIGRATION, "80mbit")  # 10 MB/s
        slow = send(here, address, 5_000_000)
        links.shape(Network.MIGRATION, None)
        links.shape(Network.MIGRATION, None)
        fast = send(here, address, 5_000_000)
    assert slow is not None
    assert 0.45 < slow < 2.0
    assert fast is not None
    assert fast < slow / 2


@pytest.mark.parametrize("rate", ["fast", "0gbit", "-1gbit", "1gbit burst 1", ""])
def test_a_rate_that_is_none_is_refused(rate: str) -> None:
    with pytest.raises(BadSpec, match="is not a rate"):
        labs.bits_per_s(rate)


@pytest.mark.parametrize("name", ["", "a-b", "Demo", "../x", "a" * 13, "9a"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BadSpec):
        up(Wanted(name=name))
    with pytest.raises(BadSpec):
        find(name)


def test_a_root_too_long_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_LAB_ROOT", "/tmp/" + "x" * 60)
    with pytest.raises(BadSpec, match="too long"):
        up(Wanted(name="demo"))


def test_a_lab_of_which_only_parts_are_there_can_be_removed(lab_name: str, links: Links) -> None:
    netns.delete(lab_name, netns.name(lab_name, "client"))
    record.folder(lab_name).mkdir(parents=True)
    (record.folder(lab_name) / "lab.json").write_text("{ torn")
    with running(netns.name(lab_name, "hv-a"), HOLD) as stray:
        with pytest.raises(LabFailed, match="only parts"):
            find(lab_name)
        assert any(f"process {stray.pid}:" in left for left in leftovers(lab_name))
        assert remove(lab_name)
        assert stray.wait(10) != 0
    assert leftovers(lab_name) == []
    assert not remove(lab_name)
    with pytest.raises(LabNotFound):
        find(lab_name)


def test_a_mount_below_the_labs_folder_goes_with_it(lab_name: str) -> None:
    place = record.folder(lab_name) / "full disk"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    assert f"mount {place}" in leftovers(lab_name)
    remove(lab_name)
    assert str(place) not in Path("/proc/mounts").read_text().replace("\\040", " ")


def test_a_reused_pid_is_never_taken_for_the_labs_daemon(lab_name: str, links: Links) -> None:
    a_lab = Record(name=lab_name, hosts=("hv-a",), rate=None, accel="tcg", probe_kernel="")
    a_lab.folder.mkdir(parents=True)
    a_lab.write()
    host = Host(a_lab, 0)
    host.folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        now = identify(bystander.pid)
        assert now is not None
        for other in (
            replace(now, start_ticks=now.start_ticks - 1),
            replace(now, boot_id="00000000-0000-0000-0000-000000000000"),
        ):
            (host.folder / "sternad.json").write_text(json.dumps(asdict(other)))
            assert host.process is None
            assert not other.signal(signal.SIGKILL)
            host.kill()
        remove(lab_name)
        assert now.is_alive
        bystander.communicate(b"\n")
        assert bystander.returncode == 0


def test_processes_outside_the_namespaces_are_left_alone(lab_name: str, links: Links) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        remove(lab_name)
        bystander.communicate(b"\n")
        assert bystander.returncode == 0


def test_hosts_answer_know_each_other_and_share_what_they_should(lab: Lab) -> None:
    for host, other in zip(lab.hosts, reversed(lab.hosts), strict=True):
        assert host.client.get("/v1")["name"] == host.name
        states = {known["name"]: known["state"] for known in host.client.get("/v1/hosts")}
        assert states == {host.name: "this", other.name: "up"}
        assert [facts["switch"]["name"] for facts in host.client.get("/v1/switches")] == ["lan"]
    shared, local = (
        [
            next(
                f["pool"]["identity"]
                for f in host.client.get("/v1/pools")
                if f["pool"]["name"] == name
            )
            for host in lab.hosts
        ]
        for name in ("shared", "local")
    )
    assert shared[0] == shared[1]
    assert local[0] != local[1]


def test_three_hosts_all_know_each_other(make_lab: Callable[..., Lab]) -> None:
    wide = make_lab(hosts=3)
    for host in wide.hosts:
        states = {known["name"]: known["state"] for known in host.client.get("/v1/hosts")}
        assert states == {"hv-a": "up", "hv-b": "up", "hv-c": "up"} | {host.name: "this"}


def test_guests_from_the_command_line_beat_each_at_an_address_of_its_own(lab: Lab) -> None:
    with Witness(lab) as witness:
        for number, (vm, host) in enumerate((("web", "hv-a"), ("db", "hv-b"))):
            began = time.time_ns()
            argv = [*STERNA, "lab", "vm", vm, "--lab", lab.name, "--on", host, "--blocks", "20"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (0, f"{vm} is running on {host}\n"), (
                done.stderr
            )
            witness.wait_beat(began, number)
    url = subprocess.run(
        [*STERNA, "lab", "url", "hv-b", "--lab", lab.name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert url.stdout == f"{lab['hv-b'].url}\n"


def test_a_host_that_the_lab_has_not_is_told_with_those_it_has(lab: Lab) -> None:
    with pytest.raises(HostUnknown, match="hv-z") as told:
        lab["hv-z"]
    assert "hv-a, hv-b" in told.value.advice


def test_a_killed_daemon_starts_again_and_a_stopped_one_too(lab: Lab) -> None:
    host = lab["hv-a"]
    first = host.process
    assert first is not None
    host.kill()
    assert host.process is None
    assert not first.is_alive
    host.start()
    host.wait_ready()
    second = host.process
    assert second != first
    host.start()
    assert host.process == second
    host.stop()
    assert host.process is None
    host.start()
    host.wait_ready()
    assert host.client.get("/v1")["name"] == "hv-a"


def test_a_lab_is_found_again_by_its_name_and_not_made_twice(lab: Lab) -> None:
    again = find(lab.name)
    assert [host.process for host in again.hosts] == [host.process for host in lab.hosts]
    with pytest.raises(LabExists):
        up(Wanted(name=lab.name))
    assert [host.process for host in again.hosts] == [host.process for host in lab.hosts]


def test_two_labs_live_side_by_side(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    other = make_lab(hosts=1)
    assert other["hv-a"].client.get("/v1/hosts") != lab["hv-a"].client.get("/v1/hosts")
    remove(other.name)
    assert leftovers(other.name) == []
    assert lab["hv-a"].client.get("/v1")["name"] == "hv-a"


def test_a_lab_whose_daemon_does_not_start_leaves_nothing_and_says_why(lab_name: str) -> None:
    before = interfaces()
    with pytest.raises(LabFailed, match=r"qemu\.accel"):
        up(Wanted(name=lab_name, accel="warp"))
    assert leftovers(lab_name) == []
    assert interfaces() == before


def test_a_lab_whose_maker_was_killed_is_swept_away(lab_name: str) -> None:
    code = (
        "import sys\nfrom sterna.lab.lab import Wanted, up\n"
        "up(Wanted(name=sys.argv[1], hosts=1, accel='tcg', ends_with_us=True))\n"
        "print('ready', flush=True)\ninput()"
    )
    argv = [sys.executable, "-c", code, lab_name]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
        assert lab_name not in sweep()
        daemon = find(lab_name)["hv-a"].process
        assert isinstance(daemon, Process)
        maker.kill()
    assert daemon.is_alive
    assert lab_name in sweep()
    assert until(lambda: not daemon.is_alive)
    assert leftovers(lab_name) == []


@pytest.mark.parametrize("words", [("up",), ("down",), ("demo",)])
def test_without_root_the_lab_says_so(words: tuple[str, ...]) -> None:
    # The tree may lie where nobody may read, so it is imported before root is given up.
    code = (
        "import os, pkgutil, sys; import sterna.cli.main, sterna.cli.lab, sterna.lab\n"
        "for found in (sterna.cli, sterna.lab):\n"
        "    for module in pkgutil.iter_modules(found.__path__, found.__name__ + '.'):\n"
        "        __import__(module.name)\n"
        "os.setgroups([]); os.setuid(65534)\n"
        "sys.exit(sterna.cli.main.run(sys.argv[1:]))"
    )
    nobody = [sys.executable, "-c", code]
    done = subprocess.run([*nobody, "lab", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stderr == (
        "sterna: the lab makes network namespaces, which only root may do\n"
        f"fix: Run it again with: sudo sterna lab {words[0]}\n"
    )


def test_the_commands_make_show_and_remove_a_lab(lab_name: str) -> None:
    def sterna(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*STERNA, *words], capture_output=True, text=True, check=False)

    made = sterna("lab", "up", "--name", lab_name, "--hosts", "1", "--rate", "none")
    assert made.returncode == 0, made.stderr
    socket = find(lab_name)["hv-a"].socket
    assert f"sterna --host unix://{socket} vm list" in made.stdout
    shown = json.loads(sterna("lab", "status", "--name", lab_name, "-o", "json").stdout)
    assert [(host["name"], host["state"]) for host in shown["hosts"]] == [("hv-a", "up")]
    assert sterna("lab", "up", "--name", lab_name).returncode == 4
    for _ in range(2):
        assert sterna("lab", "down", "--name", lab_name).returncode == 0
    assert leftovers(lab_name) == []
    assert sterna("lab", "status", "--name", lab_name).returncode == 4
