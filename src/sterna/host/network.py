"""Virtual switches: Linux bridges, and the taps by which VMs are plugged into them.

Promises: `ensure` may be called at any time and again (a bridge is gone after every reboot); a
tap vanishes with the last process that holds its descriptor, so a dead QEMU leaves none behind.
A bridge that Sterna made bears the mark `sterna:NAME` as its alias. A bridge without that mark is
used as it is: Sterna neither changes nor deletes it. An uplink is never taken from another bridge,
and never when that would cut an address of this host off.

With VLAN filtering (where the kernel has it) a NIC without VLAN reaches untagged traffic only, and
a NIC with one is an access port: its frames are tagged on the uplink, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import struct
from collections.abc import AsyncIterator

from sterna.clock import monotonic
from sterna.errors import (
    NetworkFailed,
    SternaError,
    SwitchHasPorts,
    SwitchUnusable,
    VLANUnsupported,
)
from sterna.host import fdb, iproute
from sterna.host.iproute import Device
from sterna.model.host import Switch, SwitchFacts

MARK = "sterna:"
NATIVE_VLAN = 1  # the kernel's default for untagged frames; never seen on a wire
TAP_INDEXES = 100  # two digits in 15 characters

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_BUSY_S = (
    2.0  # a tap of that name may still be closing, or be held by a child between fork and exec
)
_BUSY_POLL_S = 0.02


def tap_name(vm_id: str, index: int) -> str:
    """The tap of NIC number `index`: the same on each start, 15 characters at most."""
    if not 0 <= index < TAP_INDEXES:
        raise ValueError(f"a VM has no NIC number {index}")
    return f"st{_digest(vm_id, 10)}n{index}"


def bridge_name(switch: Switch) -> str:
    """The bridge of `switch`: the given one, or one made from the switch's name."""
    if switch.bridge:
        return switch.bridge
    plain = re.sub(r"[.-]", "", switch.name)
    if plain == switch.name and len(plain) <= 13:
        return f"br{plain}"
    return f"br{plain[:7]}{_digest(switch.name, 6)}"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


class Network:
    """The switches and taps of this host; `run` executes iproute2's commands."""

    def __init__(self, run: iproute.Run = iproute.run, *, host: str = "this host") -> None:
        self._run = run
        self._host = host
        self._lock = asyncio.Lock()  # one change of bridges at a time
        self.can_tag: bool | None = None  # a fact of the kernel, learned from the first bridge

    # ---- bridges ---------------------------------------------------------------------------

    async def ensure(self, switch: Switch) -> None:
        """Make the bridge of `switch` if it is not there, and join its uplink.

        What it made is removed again if it fails. Raises SwitchUnusable, NetworkFailed.
        """
        async with self._lock:
            await self._ensure(switch)

    async def _ensure(self, switch: Switch) -> Device:
        name = bridge_name(switch)
        uplink = await self._uplink(switch)
        bridge = await iproute.device(self._run, name)
        if bridge is not None:
            self._check_bridge(switch, bridge, uplink)
            if bridge.alias == MARK + switch.name:
                await self._finish(bridge, uplink)
            self.can_tag = bridge.can_tag
            return bridge
        mac = _random_mac()
        async with self._undone_if_it_fails(name, mac):
            await self._batch(
                # STP off and no forward delay: a VM that arrives is heard at once, not in 15 s.
                # No snooping: nobody would know the multicast groups of a VM that arrives.
                f"link add name {name} address {mac} type bridge"
                " stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set dev {name} alias {MARK}{switch.name}",
            )
            bridge = await self._existing(name)
            await self._finish(bridge, uplink)
            self.can_tag = bridge.can_tag
            return await self._existing(name)

    async def _uplink(self, switch: Switch) -> Device | None:
        """The uplink, fit for `switch`."""
        if not switch.uplink:
            return None
        uplink = await iproute.device(self._run, switch.uplink)
        if uplink is None:
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"{self._host} has no interface {switch.uplink}",
                fix="List the interfaces with: ip link",
            )
        name = bridge_name(switch)
        if uplink.master not in ("", name):
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"its uplink {uplink.name} belongs to {uplink.master} already",
                fix=f"Name {uplink.master} as the bridge, or choose another uplink",
            )
        if uplink.addresses and not uplink.master:
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"its uplink {uplink.name} has the address {uplink.addresses[0]}, which"
                " would no longer answer",
                fix="Choose another uplink, or make a bridge that has the address and name that",
            )
        return uplink

    def _check_bridge(self, switch: Switch, bridge: Device, uplink: Device | None) -> None:
        if bridge.kind != "bridge":
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"{bridge.name} exists and is not a bridge",
                fix="Give the switch another bridge name",
            )
        if bridge.alias.startswith(MARK) and bridge.alias != MARK + switch.name:
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"{bridge.name} is the bridge of switch {bridge.alias.removeprefix(MARK)}",
                fix="Give the switch another bridge name",
            )
        is_ours = bridge.alias == MARK + switch.name
        if not is_ours and uplink is not None and not uplink.master:
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"{bridge.name} was not made by Sterna and lacks the uplink {uplink.name}",
                fix=f"Join it yourself: ip link set dev {uplink.name} master {bridge.name}",
            )

    async def _finish(self, bridge: Device, uplink: Device | None) -> None:
        """Bring a bridge of ours to its full state; quick if it is there already."""
        name = bridge.name
        if bridge.can_tag and not bridge.is_filtering:
            await self._ip(f"link set dev {name} type bridge vlan_filtering 1")
        if uplink is not None and not (uplink.master and uplink.is_up):
            await self._ip(f"link set dev {uplink.name} master {name} up")
        if not bridge.is_up:
            await self._silence(name)
            await self._ip(f"link set dev {name} up")

    async def require_free(self, switch: Switch) -> None:
        """Raises SwitchUnusable if a device that is not Sterna's bears the bridge's name."""
        bridge = await iproute.device(self._run, bridge_name(switch))
        if bridge is not None and bridge.alias != MARK + switch.name:
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"{bridge.name} exists already and was not made by Sterna",
                fix=f"To use it as it is, name it as the bridge: {bridge.name}",
            )

    async def remove(self, switch: Switch) -> None:
        """Delete the bridge of `switch` if Sterna made it; its uplink is free then.

        Raises SwitchHasPorts if more than the uplink is plugged in.
        """
        name = bridge_name(switch)
        async with self._lock:
            bridge = await iproute.device(self._run, name)
            if bridge is None or bridge.alias != MARK + switch.name:
                return
            others = [
                port for port in await iproute.ports(self._run, name) if port != switch.uplink
            ]
            if others:
                raise SwitchHasPorts(switch=switch.name, bridge=name, ports=", ".join(others))
            await self._ip(f"link del dev {name}")

    async def facts(self, switch: Switch) -> SwitchFacts:
        """The state of `switch` now; `problem` says what keeps VMs from using it."""
        vlans, problem = False, ""
        try:
            uplink = await self._uplink(switch)
            bridge = await iproute.device(self._run, bridge_name(switch))
            if bridge is None:
                problem = f"its bridge {bridge_name(switch)} is gone; starting a VM makes it again"
            else:
                self._check_bridge(switch, bridge, uplink)
                vlans = bridge.is_filtering
                problem = _fault(bridge, uplink)
        except SternaError as error:
            problem = str(error.facts.get("reason", error.message))
        return SwitchFacts(switch=switch, vlans=vlans, problem=problem)

    # ---- ports -----------------------------------------------------------------------------

    async def open_tap(self, name: str, switch: Switch, vlan: int | None = None) -> int:
        """A new tap, plugged into `switch` and up: its descriptor, for QEMU (`tap,fd=`).

        It is gone when the last copy of the descriptor is closed. Raises NetworkFailed,
        SwitchUnusable, VLANUnsupported; then it is gone already.
        """
        await self.ensure(switch)
        fd = await _open_tap(name)
        try:
            await self.plug(name, switch, vlan)
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def plug(self, port: str, switch: Switch, vlan: int | None = None) -> None:
        """Join an interface that is down to `switch` as an access port, and bring it up."""
        name = bridge_name(switch)
        bridge = await self._existing(name)
        if vlan is not None and not bridge.can_tag:
            raise VLANUnsupported(switch=switch.name, vlan=vlan, host=self._host)
        if vlan is not None and not bridge.is_filtering:
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"{name} was not made by Sterna and does not keep VLANs apart",
                fix=f"Let it: ip link set dev {name} type bridge vlan_filtering 1",
            )
        await self._silence(port)
        # A bridge takes the smallest MTU of its ports: a new tap's 1500 would shrink it.
        await self._ip(f"link set dev {port} mtu {bridge.mtu} master {name}")
        if vlan is not None and vlan != NATIVE_VLAN:
            lines = [
                f"vlan del dev {port} vid {NATIVE_VLAN}",
                f"vlan add dev {port} vid {vlan} pvid untagged",
            ]
            if switch.uplink:
                lines.append(f"vlan add dev {switch.uplink} vid {vlan}")
            await self._run(["bridge", "-batch", "-"], "\n".join(lines) + "\n")
        await self._ip(f"link set dev {port} up")
        if bridge.bridge.get("forward_delay") and not bridge.bridge.get("stp_state"):
            # Somebody else's bridge, set to be deaf at first; without STP there is no loop to fear.
            await self._run(["bridge", "link", "set", "dev", port, "state", "3"], "")

    async def forget(self, switch: Switch, mac: str) -> None:
        """Drop what the bridge learned of `mac`, so that frames for it are sent everywhere again.

        For the source of a move: its own VMs must not look for the one that left behind its tap.
        """
        await asyncio.to_thread(fdb.forget, bridge_name(switch), mac)

    # ---- words for iproute2 ----------------------------------------------------------------

    async def _ip(self, words: str) -> None:
        await self._run(["ip", *words.split()], "")

    async def _batch(self, *lines: str) -> None:
        """Several changes by one process, which finishes even if this daemon dies now."""
        await self._run(["ip", "-batch", "-"], "\n".join(lines) + "\n")

    async def _existing(self, name: str) -> Device:
        found = await iproute.device(self._run, name)
        if found is None:
            raise NetworkFailed(action=f"use bridge {name}", reason="it has just been removed")
        return found

    async def _silence(self, name: str) -> None:
        """No IPv6 of the host's own on the guests' network; a kernel without IPv6 needs nothing."""
        with contextlib.suppress(NetworkFailed):
            await self._ip(f"link set dev {name} addrgenmode none")

    @contextlib.asynccontextmanager
    async def _undone_if_it_fails(self, bridge: str, mac: str) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(NetworkFailed):
                made = await iproute.device(self._run, bridge)
                if made is not None and made.mac == mac:  # else another made it meanwhile
                    await self._ip(f"link del dev {bridge}")
            raise


def _fault(bridge: Device, uplink: Device | None) -> str:
    if not bridge.is_up:
        return f"its bridge {bridge.name} is down"
    if uplink is None:
        return ""
    if not uplink.master:
        return f"its uplink {uplink.name} is not plugged into {bridge.name}"
    if not (uplink.is_up and uplink.has_carrier):
        return f"its uplink {uplink.name} has no link"
    return ""


def _random_mac() -> str:
    """A local address of the bridge's own: otherwise it changes with each tap that comes and goes."""
    return "56:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5))


async def _open_tap(name: str) -> int:
    """A new non-persistent tap as QEMU wants it: no packet information, virtio-net headers."""
    request = struct.pack(
        "16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    )
    deadline = monotonic() + _BUSY_S
    while True:
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkFailed(action="open /dev/net/tun", reason=error.strerror) from error
        try:
            fcntl.ioctl(fd, _TUNSETIFF, request)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY or monotonic() > deadline:
                raise NetworkFailed(action=f"make tap {name}", reason=error.strerror) from error
        else:
            return fd
        await asyncio.sleep(_BUSY_POLL_S)
