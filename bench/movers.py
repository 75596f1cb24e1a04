"""Those who move a guest, all with the same words: Sterna, QEMU alone, virsh.

Each has one guest of its own in the lab, the lab's guest without disks on the same emulated
machine. A mover brings its guest from where it is to a host in one of its `ways`, and says what
that took. The clock of a move begins with the order and stops when the order is done: the target's
QEMU is started and the source's has ended. For QEMU alone `migrate_s` is the part from `migrate`
to the guest running on the target, with a target that waits already.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import bare
import libvirt
from sterna.host.bridges import bridge_name
from sterna.lab.hosts import Host
from sterna.lab.lab import Lab
from sterna.lab.vm import spec
from sterna.model import edge
from sterna.model.host import Switch
from sterna.model.move import MoveWishes

UNLIMITED = 16 << 30  # bytes/s: Sterna's value for a move without a limit
DOWNTIME_MS = 300  # allowed by all: QEMU's, libvirt's and Sterna's default
CANCEL_S = 60.0
LOOK_S = 0.25
VM, PEER = "tern", "peer"
VIRSH = {
    "virsh": (),
    "virsh-compressed": ("--compressed",),
    "virsh-auto-converge": ("--auto-converge",),
    # After the first round: what else would say when the rest shall be fetched by the target?
    "virsh-postcopy": ("--postcopy", "--postcopy-after-precopy"),
}


class Unfinished(Exception):
    """The move had not ended at its deadline and was cancelled; the guest is where it was.

    `done_after_s` if it could not be cancelled any more and ended late: it is on the target then.
    """

    def __init__(self, done_after_s: float | None = None) -> None:
        super().__init__()
        self.done_after_s = done_after_s


class Mover(Protocol):
    """One who moves guest `number` of the lab; `host` is where it is, paused between moves."""

    number: int
    ways: tuple[str, ...]
    host: Host

    @property
    def console(self) -> Path: ...
    async def boot(self, host: Host) -> None: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def move(self, target: Host, way: str, deadline_s: float) -> dict[str, Any]:
        """What is known of it, with `total_s`. Raises Unfinished."""


class Sterna:
    """`POST /v1/vms/NAME/moves`, until the operation has ended."""

    number = 0
    ways: tuple[str, ...] = ("auto", "direct", "compression")

    def __init__(self, lab: Lab, memory: int, wishes: dict[str, Any] | None = None) -> None:
        self._lab = lab
        self._memory = memory
        self._wishes = wishes or {}
        self.host = lab.hosts[0]
        self.view: dict[str, Any] = {}

    @property
    def console(self) -> Path:
        return Path(self.host.client.get(f"/v1/vms/{VM}")["console"])

    async def boot(self, host: Host) -> None:
        self.host = host
        host.client.post("/v1/vms", spec(self._lab.guest(), VM, self.number, memory=self._memory))
        self.view = host.client.post(f"/v1/vms/{VM}:start")

    async def pause(self) -> None:
        self.host.client.post(f"/v1/vms/{VM}:pause")

    async def resume(self) -> None:
        self.host.client.post(f"/v1/vms/{VM}:resume")

    async def move(self, target: Host, way: str, deadline_s: float) -> dict[str, Any]:
        wishes = {"target": target.name, "max_downtime_ms": DOWNTIME_MS, **self._wishes}
        if way != "auto":
            wishes["carrier"] = way
        began = time.monotonic()
        client = self.host.client
        operation = client.post(f"/v1/vms/{VM}/moves", wishes)
        is_late = False
        while operation["state"] in ("queued", "running", "cancelling"):
            left = began + deadline_s - time.monotonic()
            if left <= 0 and not is_late:
                is_late = True
                client.post(f"/v1/operations/{operation['id']}:cancel")
            if left < -CANCEL_S:
                raise RuntimeError(f"the move can not be cancelled: {operation}")
            wait = max(LOOK_S, min(20.0, left))
            operation = client.get(f"/v1/operations/{operation['id']}", {"wait": wait})
        took = round(time.monotonic() - began, 3)
        if operation["state"] in ("succeeded", "warned"):
            self.host = target
            if is_late:
                raise Unfinished(took)
        elif is_late and operation["state"] == "cancelled":
            raise Unfinished
        else:
            raise RuntimeError(f"the move failed: {operation['error']}")
        return {"total_s": took, "report": operation["result"], "operation": operation["id"]}


class QEMU:
    """QEMU's own `migrate`, as a short script would use it."""

    number = 1
    ways: tuple[str, ...] = ("qemu", *(f"qemu-{way}" for way in bare.WAYS if way != "tcp"))

    def __init__(self, lab: Lab, memory: int, like: Sterna) -> None:
        self._lab = lab
        self._memory = memory
        self._like = like
        self.host = lab.hosts[0]
        self._guest: bare.Bare

    @property
    def console(self) -> Path:
        return self._guest.console

    async def boot(self, host: Host) -> None:
        body = spec(self._lab.guest(), VM, self.number, memory=self._memory)
        machine = bare.machine_like(
            self._like.view,
            host.client.get("/v1/host"),
            body["boot"]["cmdline"],
            max_bandwidth=UNLIMITED,
            downtime_ms=DOWNTIME_MS,
        )
        self.host = host
        self._guest = bare.Bare(self._lab, machine)
        await self._guest.boot(host)

    async def pause(self) -> None:
        await self._guest.pause()

    async def resume(self) -> None:
        await self._guest.resume()

    async def end(self) -> None:
        await self._guest.end()

    async def move(self, target: Host, way: str, deadline_s: float) -> dict[str, Any]:
        chosen = bare.WAYS[way.removeprefix("qemu").lstrip("-") or "tcp"]
        try:
            report = await self._guest.move(target, chosen, deadline_s)
        except bare.TooSlow:
            raise Unfinished from None
        self.host = target
        return {
            "total_s": report["with_start_and_end_s"],
            "migrate_s": report["total_s"],
            "report": report,
        }


class Virsh:
    """`virsh migrate` between a libvirtd on each host."""

    number = 2
    ways: tuple[str, ...] = tuple(VIRSH)

    def __init__(self, lab: Lab, memory: int, like: Sterna) -> None:
        self._lab = lab
        self._memory = memory
        self._like = like
        self.host = lab.hosts[0]
        self._daemons = {host.name: libvirt.Libvirtd(lab, host) for host in lab.hosts}

    @property
    def _here(self) -> libvirt.Libvirtd:
        return self._daemons[self.host.name]

    @property
    def console(self) -> Path:
        return self._here.console

    async def boot(self, host: Host) -> None:
        for one in self._daemons.values():
            one.start()
        for one in self._daemons.values():
            await asyncio.to_thread(one.wait_ready)
        self.host = host
        await asyncio.to_thread(self._here.create, self._domain(host).xml())

    def _domain(self, host: Host) -> libvirt.Domain:
        """The same machine: what Sterna chose for its own guest is told to libvirt."""
        view = self._like.view
        boot = spec(self._lab.guest(), VM, self.number, memory=self._memory)["boot"]
        words = Path(f"/proc/{view['process']['pid']}/cmdline").read_text().split("\0")
        switch = next(s["switch"] for s in host.client.get("/v1/host")["switches"])
        return libvirt.Domain(
            name=PEER,
            memory=self._memory,
            kernel=boot["kernel"],
            initrd=boot["initrd"],
            cmdline=boot["cmdline"],
            machine=view["spec"]["machine"],
            accel=view["process"]["accel"],
            cpu=words[words.index("-cpu") + 1],
            binary=words[0],
            bridge=bridge_name(edge.parse(Switch, switch, "switch")),
        )

    async def pause(self) -> None:
        await asyncio.to_thread(self._here.suspend, PEER)

    async def resume(self) -> None:
        await asyncio.to_thread(self._here.resume, PEER)

    def end(self) -> None:
        for one in self._daemons.values():
            one.stop()

    async def move(self, target: Host, way: str, deadline_s: float) -> dict[str, Any]:
        here, there = self._here, self._daemons[target.name]
        began = time.monotonic()
        order = asyncio.create_task(asyncio.to_thread(here.migrate, PEER, there, *VIRSH[way]))
        done, _ = await asyncio.wait([order], timeout=deadline_s)
        if not done:
            await asyncio.to_thread(here.abort, PEER)
        try:
            await order
        except RuntimeError:
            if done:
                raise
            raise Unfinished from None
        took = round(time.monotonic() - began, 3)
        self.host = target
        if not done:
            raise Unfinished(took)
        return {"total_s": took, "report": await asyncio.to_thread(there.job, PEER)}


def known_ways() -> tuple[str, ...]:
    """Ours that this version has."""
    has_wish = "carrier" in {field.name for field in fields(MoveWishes)}
    return Sterna.ways if has_wish else ("auto",)


__all__ = ["QEMU", "Mover", "Sterna", "Unfinished", "Virsh", "known_ways"]
