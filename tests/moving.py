"""Words for tests that move guests: one guest of a lab, its operations, and what must hold after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sterna.errors import SternaError
from sterna.lab import demo, vm
from sterna.lab.console import GuestConsole
from sterna.lab.disklog import check
from sterna.lab.hosts import Host
from sterna.lab.lab import Lab
from sterna.lab.vm import Load
from sterna.lab.witness import Witness

WAIT_S = 60.0


class Traveller:
    """A guest that works on `home`, watched from outside."""

    def __init__(self, lab: Lab, witness: Witness, load: Load, name: str = "tern") -> None:
        self.lab = lab
        self.witness = witness
        self.load = load
        self.name = name
        self.boot = 0

    def begin(self) -> None:
        home = self.lab.hosts[0]
        began = time.time_ns()
        home.client.post("/v1/vms", vm.spec(self.lab.guest(), self.name, load=self.load))
        home.client.post(f"/v1/vms/{self.name}:start")
        self.boot = self.witness.wait_beat(began).boot_id
        self.ask(home, "status")

    def ask(self, host: Host, order: str) -> dict[str, Any]:
        console = Path(host.client.get(f"/v1/vms/{self.name}")["console"])

        async def asking() -> dict[str, Any]:
            async with GuestConsole(console) as guest:
                return await guest.ask(order, timeout_s=WAIT_S)

        return asyncio.run(asking())

    def move(self, source: Host, target: Host | str, **wishes: Any) -> dict[str, Any]:
        """Begin a move; the operation as it is at once."""
        name = target if isinstance(target, str) else target.name
        return dict(source.client.post(f"/v1/vms/{self.name}/moves", {"target": name, **wishes}))

    def move_ended(self, host: Host) -> dict[str, Any]:
        """The newest move that `host` knows of, when it has ended."""
        (newest,) = host.client.get("/v1/operations", {"kind": "move", "limit": 1})
        return self.ended(host, newest)

    def ended(self, host: Host, operation: dict[str, Any]) -> dict[str, Any]:
        """The operation when it has ended."""
        path = f"/v1/operations/{operation['id']}"
        return dict(host.client.get(path, {"wait": WAIT_S}, wait_s=2 * WAIT_S))

    def phase_of(self, host: Host, operation: dict[str, Any]) -> str:
        return str(host.client.get(f"/v1/operations/{operation['id']}")["phase"])

    def must_run_once_on(self, host: Host) -> None:
        """Daemons, processes, beats, memory and disk all say so."""
        began = time.time_ns()
        for other in self.lab.hosts:
            assert len(demo.qemus(other.netns, self.name)) <= 1
        wait_until(lambda: self._is_only_on(host), f"{self.name} is on {host.name} and only there")
        self.witness.wait_beat(began)
        assert {beat.boot_id for beat in self.witness.beats()} == {self.boot}
        if self.load.memory_mb_s:
            verdict = self.ask(host, "verify")
            assert verdict["bad"] == 0
            assert verdict["good"] > 0

    def _is_only_on(self, host: Host) -> bool:
        """A QEMU that lost the VM may still be about to end; it never runs a vCPU."""
        states = {
            other.name: [view["state"] for view in other.client.get("/v1/vms")]
            for other in self.lab.hosts
        }
        qemus = {other.name: len(demo.qemus(other.netns, self.name)) for other in self.lab.hosts}
        names = [other.name for other in self.lab.hosts]
        return states == {name: ["running"] * (name == host.name) for name in names} and qemus == {
            name: int(name == host.name) for name in names
        }

    def must_have_its_disk(self, host: Host) -> None:
        """All blocks that the guest was told are written are in the image, after it is off."""
        image = self.lab.folder / "shared" / f"{self.name}-vda.raw"
        self.must_have_disks(host, {"vda": image})

    def must_have_disks(self, host: Host, images: dict[str, Path]) -> None:
        """As `must_have_its_disk`, for images wherever they are, by the names of their disks."""
        self.ask(host, "disk off")
        told = {disk: log["durable"] for disk, log in self.ask(host, "status")["disks"].items()}
        self.power_off(host)
        for disk, image in images.items():
            log = check(image, disk)
            assert told[disk] > 0
            assert log.proves(told[disk]), (disk, log)

    def order_power_off(self, console: str) -> None:
        """By the guest's own console: no daemon is needed."""

        async def ordering() -> None:
            async with GuestConsole(Path(console)) as guest:
                await guest.end("poweroff")

        asyncio.run(ordering())

    def power_off(self, host: Host) -> None:
        operation = host.client.post(f"/v1/vms/{self.name}:stop", {"timeout_s": WAIT_S})
        assert self.ended(host, operation)["state"] == "succeeded"


def record_of(host: Host, vm: str = "tern") -> Path:
    """The file of the VM's record; a host also has records of VMs that have left."""
    identity = host.client.get(f"/v1/vms/{vm}")["id"]
    return host.folder / "state" / "vms" / f"{identity}.json"


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Until `condition` holds; a daemon that does not answer yet is simply asked again."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(SternaError):
            if condition():
                return
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def traveller(lab: Lab, load: Load | None = None) -> Iterator[Traveller]:
    """A guest that beats and works, until the block ends."""
    with Witness(lab) as witness:
        guest = Traveller(lab, witness, load or Load(memory_mb_s=20, memory_mb=64))
        guest.begin()
        yield guest


@contextlib.contextmanager
def a_twin(host: Host) -> Iterator[None]:
    """A second VM with the same disks, as no API makes it."""
    record = record_of(host)
    data = json.loads(record.read_text())
    data["spec"] |= {"name": "gull", "id": "5d2b8f5e-6a51-4f0c-8d5e-1f2a3b4c5d6e", "nics": []}
    twin = record.with_name(f"{data['spec']['id']}.json")
    try:
        host.stop()
        twin.write_text(json.dumps(data))
        host.start()
        host.wait_ready()
        yield
    finally:
        host.stop()
        twin.unlink()
        host.start()
        host.wait_ready()
