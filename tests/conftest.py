"""Fixtures for all tests that need the lab. Every lab is removed, pass or fail, and then looked for."""

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sterna.errors import NotFound, SternaError
from sterna.lab import netns, processes
from sterna.lab.hosts import Host
from sterna.lab.lab import Lab, Wanted, leftovers, remove, up
from sterna.lab.links import CLIENT, Network

MakeLab = Callable[..., Lab]
# Below a host's state: what a test may have changed, beside VMs.
RECORDS = (
    "switches",
    "pools",
    "settings",
    "kept",
    "ports",
    "drain",
    "peers",
    "identity",
    "users",
    "tokens",
)


@pytest.fixture
def lab_name() -> Iterator[str]:
    """A name that no other lab has; what the test makes of it is gone afterwards."""
    name = _new_name()
    yield name
    assert _removed(name) == []


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    """A function that makes a lab for this test alone: `make_lab(hosts=3, rate="1gbit")`."""
    names: list[str] = []

    def make(**wanted: object) -> Lab:
        names.append(_new_name())
        return up(_wanted(name=names[-1], **wanted))

    yield make
    assert not [left for name in names for left in _removed(name)]


class Keeper:
    """Keeps one lab of two hosts for many tests. One that is not as it was new is replaced."""

    def __init__(self) -> None:
        self._lab: Lab | None = None
        self._new: dict[str, object] = {}

    def lab(self) -> Lab:
        if self._lab is None:
            self._lab = up(_wanted(name=_new_name()))
            self._new = _look(self._lab)
        return self._lab

    def clean(self) -> None:
        """All cables in and at full speed, all daemons up, no VM, no stray process."""
        lab = self._lab
        try:
            if lab is not None:
                _clean(lab)
                assert _look(lab) == self._new
        except (SternaError, AssertionError):
            self.close()

    def close(self) -> None:
        if self._lab is not None:
            name, self._lab = self._lab.name, None
            assert _removed(name) == []


@pytest.fixture(scope="session")
def lab_keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.close()


@pytest.fixture
def lab(lab_keeper: Keeper) -> Iterator[Lab]:
    """Two hosts, hv-a and hv-b, without VMs. Shared between tests and cleaned after each."""
    yield lab_keeper.lab()
    lab_keeper.clean()


def _new_name() -> str:
    return f"t{secrets.token_hex(4)}"


def _wanted(**wanted: object) -> Wanted:
    accel = os.environ.get("STERNA_LAB_ACCEL", "auto")
    return Wanted(**{"accel": accel, "ends_with_us": True, **wanted})  # type: ignore[arg-type]


def _removed(name: str) -> list[str]:
    with suppress(SternaError):
        remove(name)
    return leftovers(name)


def _clean(lab: Lab) -> None:
    for network in (Network.MANAGEMENT, Network.MIGRATION):
        lab.shape(network, None)
    for host in lab.hosts:
        for network in lab.links.networks:
            lab.restore(host.name, network)
        host.start()
    for host in lab.hosts:
        host.thaw()
        host.wait_ready()
    for host in lab.hosts:
        _remove_vms(host)
    daemons = {host.process for host in lab.hosts}
    inodes = {netns.inode(netns.name(lab.name, role)) for role in (CLIENT, *lab.record.hosts)}
    strays = [p for p in processes.in_namespaces({i for i in inodes if i}) if p not in daemons]
    assert processes.end(strays, 2.0) == []


def _look(lab: Lab) -> dict[str, object]:
    """What a test may leave behind beside VMs: what each host is told, its interfaces, its files."""
    seen: dict[str, object] = {"shared": _files(lab.folder / "shared")}
    for host in lab.hosts:
        state = host.folder / "state"
        records = [host.config, *_files(state, *RECORDS)]
        links = subprocess.run(
            host.command(["ip", "-brief", "address"]), capture_output=True, text=True, check=True
        )
        seen[host.name] = (
            {path: path.read_bytes() for path in records},
            sorted(links.stdout.splitlines()),
            _files(host.folder / "pool"),
        )
    return seen


def _files(folder: Path, *below: str) -> list[Path]:
    folders = [folder / name for name in below] or [folder]
    return sorted(path for one in folders for path in one.rglob("*") if not path.is_dir())


def _remove_vms(host: Host) -> None:
    client = host.client
    for vm in client.get("/v1/vms"):
        with suppress(NotFound):  # it may have left with a move that ended meanwhile
            if vm["state"] != "off":
                operation = client.post(f"/v1/vms/{vm['name']}:stop", {"force": True})
                client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
            client.delete(f"/v1/vms/{vm['name']}")
    assert client.get("/v1/vms") == []
