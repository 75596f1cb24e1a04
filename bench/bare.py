"""The peer to compare with: a guest moved by QEMU's own `migrate` alone, as a short script would.

Same hosts, same command line, same taps as Sterna's, but QEMU continues the guest by itself (no
`-S`), and every capability and parameter has QEMU's default, except the bandwidth, the pause that
Sterna is given too, and what the `Way` asks for. Started inside a host's namespace by running this file (`launch`).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from sterna.host.network import Network
from sterna.host.taps import tap_name
from sterna.lab.hosts import Host
from sterna.lab.lab import Lab
from sterna.model import edge
from sterna.model.host import Switch
from sterna.model.vm import VMSpec
from sterna.qemu import argv
from sterna.qemu.argv import RunPaths
from sterna.qemu.commands import MigrationInfo, Monitor
from sterna.qemu.session import Events, Session

POLL_S = 0.02
LOOK_S = 0.25
DEADLINE_S = 120.0
END_S = 20.0
MAC = "52:54:00:ba:4e:01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What both ends are told beside the defaults: all capabilities that are on, and parameters."""

    capabilities: frozenset[str] = frozenset()
    parameters: tuple[tuple[str, object], ...] = ()


TCP = Way()
WAYS = {
    "tcp": TCP,
    "multifd": Way(capabilities=frozenset({"multifd"})),
    "multifd-zstd": Way(
        capabilities=frozenset({"multifd"}), parameters=(("multifd-compression", "zstd"),)
    ),
    "xbzrle": Way(capabilities=frozenset({"xbzrle"})),
}
_SWITCHED = frozenset().union(*(way.capabilities for way in WAYS.values()))


class TooSlow(Exception):
    """The migration had not ended at its deadline and was cancelled; the guest is where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What all QEMUs of the guest have in common, and the limits of its moves."""

    spec: VMSpec
    switch: Switch
    binary: str
    accel: str
    max_bandwidth: int  # bytes/s
    downtime_ms: int


class Emulator:
    """One QEMU process on one host."""

    def __init__(self, lab: Lab, host: Host, machine: Machine, *, incoming: bool) -> None:
        self.host = host
        self.paths = RunPaths(lab.folder / f"q{uuid4().hex[:6]}")
        self.paths.directory.mkdir()
        order = {
            "spec": edge.dump(machine.spec),
            "switch": edge.dump(machine.switch),
            "directory": str(self.paths.directory),
            "binary": machine.binary,
            "accel": machine.accel,
            "incoming": incoming,
        }
        with self.paths.log.open("ab") as log:
            self._process = subprocess.Popen(
                host.command([sys.executable, __file__, json.dumps(order)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.qmp: Monitor

    async def connect(self) -> Self:
        session = await Session.connect(
            "bare", self.paths.control, self.paths.oob, 20.0, lambda: self._process.poll() is None
        )
        self.qmp = Monitor(session)
        return self

    async def end(self) -> None:
        await self.qmp.quit()
        await self.qmp.session.close()
        await asyncio.to_thread(self._process.wait, END_S)


class Bare:
    """The guest, wherever it is now. Ends with its lab if it is not ended before."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self._lab = lab
        self._machine = machine
        self._at: Emulator

    @property
    def console(self) -> Path:
        return self._at.paths.serial

    async def boot(self, host: Host) -> None:
        self._at = await Emulator(self._lab, host, self._machine, incoming=False).connect()

    async def pause(self) -> None:
        await self._at.qmp.stop()

    async def resume(self) -> None:
        await self._at.qmp.cont()

    async def end(self) -> None:
        await self._at.end()

    async def move(
        self, target: Host, way: Way = TCP, deadline_s: float = DEADLINE_S
    ) -> dict[str, Any]:
        """Move it; the report has the same keys as Sterna's where they mean the same.

        `total_s` is in QEMU's favour: it begins with `migrate` to a target that waits already, and
        ends when the guest runs there; Sterna's contains the start of the one QEMU, the end of the
        other, and all that is checked and written down.
        """
        limits = {
            "max-bandwidth": self._machine.max_bandwidth,
            "downtime-limit": self._machine.downtime_ms,
        }
        source, began = self._at, time.monotonic()
        there = await Emulator(self._lab, target, self._machine, incoming=True).connect()
        for end in (there.qmp, source.qmp):
            await end.migrate_set_capabilities(
                {name: name in way.capabilities for name in sorted(_SWITCHED)}
            )
            await end.migrate_set_parameters(
                **{"multifd-compression": "none"} | dict(way.parameters)
            )
        await there.qmp.migrate_incoming(f"tcp:{target.migration_address}:0")
        port = (await there.qmp.query_migrate()).socket_port
        await source.qmp.migrate_set_parameters(**limits)
        sent = time.monotonic()
        with there.qmp.session.listen("RESUME") as events:
            await source.qmp.migrate(f"tcp:{target.migration_address}:{port}")
            try:
                await self._arrival(events, source.qmp, began + deadline_s)
            except TooSlow:
                await self._cancel(source, there)
                raise
        arrived = time.monotonic()
        info = await self._completed(source.qmp)
        await source.end()
        self._at = there
        return {
            "from": source.host.name,
            "to": target.name,
            "total_s": round(arrived - sent, 3),
            "with_start_and_end_s": round(time.monotonic() - began, 3),
            "pause_ms": info.downtime_ms,
            "bytes_wire": info.transferred,
            "rounds": info.rounds,
        }

    async def _arrival(self, events: Events, source: Monitor, deadline: float) -> None:
        """Until the target continues the guest. Looks at the source rarely: that costs CPU."""
        while time.monotonic() < deadline:
            try:
                await events.get(LOOK_S)
            except TimeoutError:
                info = await source.query_migrate()
                if info.status in ("failed", "cancelled"):
                    raise RuntimeError(
                        f"QEMU's migration {info.status}: {info.error_desc}"
                    ) from None
            else:
                return
        raise TooSlow

    async def _cancel(self, source: Emulator, target: Emulator) -> None:
        await source.qmp.migrate_cancel()
        async with asyncio.timeout(END_S):
            while True:
                if (await source.qmp.query_migrate()).status == "cancelled":
                    break
                await asyncio.sleep(POLL_S)
        await target.end()

    async def _completed(self, source: Monitor) -> MigrationInfo:
        """The final figures, which may be a moment behind the end."""
        async with asyncio.timeout(END_S):
            while True:
                info = await source.query_migrate()
                if info.status == "completed" and info.total_time_ms:
                    return info
                await asyncio.sleep(POLL_S)


def machine_like(
    view: dict[str, Any], facts: dict[str, Any], cmdline: str, **limits: int
) -> Machine:
    """The machine of a VM as its host shows it, with an identity and a command line of its own."""
    spec = edge.parse(VMSpec, view["spec"], "spec")
    assert spec.boot is not None
    nic = spec.nics[0]
    switch = next(s["switch"] for s in facts["switches"] if s["switch"]["name"] == nic.switch)
    return Machine(
        spec=replace(
            spec,
            name="bare",
            id=str(uuid4()),
            nics=(replace(nic, mac=MAC),),
            boot=replace(spec.boot, cmdline=cmdline),
        ),
        switch=edge.parse(Switch, switch, "switch"),
        binary=facts["qemu"]["binary"],
        accel=view["process"]["accel"],
        max_bandwidth=limits["max_bandwidth"],
        downtime_ms=limits["downtime_ms"],
    )


def launch(order: dict[str, Any]) -> None:
    """Become the QEMU of `order`, with a tap on this host's switch."""
    spec = edge.parse(VMSpec, order["spec"], "spec")
    switch = edge.parse(Switch, order["switch"], "switch")
    tap = asyncio.run(Network().open_tap(tap_name(spec.id, 0), switch))
    os.set_inheritable(tap, True)
    words = argv.build(
        spec,
        paths=RunPaths(Path(order["directory"])),
        binary=order["binary"],
        accel=order["accel"],
        tap_fds={spec.nics[0].name: tap},
        chains={},
        incoming=order["incoming"],
    )
    words.remove("-S")
    os.execvp(words[0], words)


if __name__ == "__main__":
    launch(json.loads(sys.argv[1]))
