"""Running iproute2's `ip` and `bridge`, and reading what they print.

Promises: a command that fails raises NetworkFailed with the kernel's own words; none outlives the
call, cancelled or not. Never interprets: that is `network.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sterna.errors import NetworkFailed

TIMEOUT_S = 10.0  # they take milliseconds; longer means that the kernel's network lock is stuck

# (command line, standard input) -> standard output; raises NetworkFailed.
Run = Callable[[Sequence[str], str], Awaitable[str]]


async def run(command: Sequence[str], stdin: str = "") -> str:
    """Run one command to its end."""
    words = " ".join(command) if not stdin else f"{command[0]}: {stdin.strip()}"
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        reason = f"{command[0]} (Debian package iproute2): {error.strerror}"
        raise NetworkFailed(action=f"run {words!r}", reason=reason) from error
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(stdin.encode() if stdin else None)
    except TimeoutError as error:
        reason = f"no answer within {TIMEOUT_S:g} s"
        raise NetworkFailed(action=f"run {words!r}", reason=reason) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = " / ".join(err.decode(errors="replace").split("\n")).strip(" /")
        raise NetworkFailed(action=f"run {words!r}", reason=reason or f"exit {process.returncode}")
    return out.decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One network device, as far as we ask."""

    name: str
    kind: str  # "bridge", "tun", "veth"; empty for hardware
    master: str
    mac: str
    alias: str
    mtu: int
    is_up: bool
    has_carrier: bool
    has_arp: bool  # False: the host neither asks nor answers there
    addresses: tuple[str, ...]  # that others may use to reach this host
    bridge: dict[str, Any] = field(default_factory=dict)  # a bridge's own settings

    @property
    def can_tag(self) -> bool:
        """Whether the kernel was built to filter VLANs. It prints `vlan_filtering` in any case."""
        return "vlan_default_pvid" in self.bridge

    @property
    def is_filtering(self) -> bool:
        """Whether this bridge keeps VLANs apart now."""
        return self.can_tag and bool(self.bridge.get("vlan_filtering"))


async def device(run: Run, name: str) -> Device | None:
    """The device called `name`; None if there is none."""
    try:
        answer = await run(["ip", "-j", "-d", "addr", "show", "dev", name], "")
    except NetworkFailed as error:
        if "does not exist" in str(error.facts["reason"]):
            return None
        raise
    return next(iter(read_devices(answer)), None)


async def devices(run: Run) -> list[Device]:
    """All of them."""
    return read_devices(await run(["ip", "-j", "-d", "addr", "show"], ""))


async def ports(run: Run, bridge: str) -> list[Device]:
    """The devices that are plugged into `bridge`."""
    answer = await run(["ip", "-j", "-d", "addr", "show", "master", bridge], "")
    return read_devices(answer)


def read_devices(answer: str) -> list[Device]:
    """`ip -j -d addr show`: iproute2 prints empty objects for devices that it filtered out."""
    items: Iterable[dict[str, Any]] = json.loads(answer or "[]")
    return [_device(item) for item in items if item]


def _device(item: dict[str, Any]) -> Device:
    info = item.get("linkinfo", {})
    kind = str(info.get("info_kind", ""))
    return Device(
        name=str(item["ifname"]),
        kind=kind,
        master=str(item.get("master", "")),
        mac=str(item.get("address", "")),
        alias=str(item.get("ifalias", "")),
        mtu=int(item["mtu"]),
        is_up="UP" in item["flags"],
        has_carrier="LOWER_UP" in item["flags"],
        has_arp="NOARP" not in item["flags"],
        addresses=tuple(
            str(address["local"])
            for address in item.get("addr_info", [])
            if address.get("local") and address.get("scope") == "global"
        ),
        bridge=info.get("info_data", {}) if kind == "bridge" else {},
    )
