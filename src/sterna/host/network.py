"""Virtual switches: Linux bridges, and the taps by which VMs are plugged into them.

Promises: `ensure` may be called at any time and again (a bridge is gone after every reboot); a
tap vanishes with the last process that holds its descriptor, so a dead QEMU leaves none behind.
A bridge that Sterna made bears the mark `sterna:NAME` as its alias. A bridge without that mark is
used as it is: Sterna neither changes nor deletes it. An uplink is never taken from another bridge,
and never when that would cut an address of this host off.

With VLAN filtering (where the kernel has it) a NIC without VLAN reaches untagged traffic only, and
a NIC with one is an access port: its frames are tagged on the uplink, and nowhere else. A trunk lets
a guest tag frames itself, for the VLANs of that trunk and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator

from sterna.errors import (
    NetworkFailed,
    SternaError,
    SwitchHasPorts,
    SwitchUnusable,
    VLANUnsupported,
)
from sterna.host import fdb, hosted, iproute, taps, vlans
from sterna.host.bridges import (
    MARK,
    bridge_name,
    fault,
    require_bridge,
    require_reach,
    require_uplink,
)
from sterna.host.iproute import Device
from sterna.model.host import Switch, SwitchFacts


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
            require_bridge(switch, bridge, uplink)
            if bridge.alias == MARK + switch.name:
                await self._finish(switch, bridge, uplink)
            self.can_tag = bridge.can_tag
            return bridge
        require_reach(switch)
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
            await self._finish(switch, bridge, uplink)
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
        require_uplink(switch, uplink)
        return uplink

    async def _finish(self, switch: Switch, bridge: Device, uplink: Device | None) -> None:
        """Bring a bridge of ours to its full state; quick if it is there already."""
        name = bridge.name
        if bridge.can_tag and not bridge.is_filtering:
            await self._ip(f"link set dev {name} type bridge vlan_filtering 1")
        if uplink is not None and not (uplink.master and uplink.is_up):
            await self._ip(f"link set dev {uplink.name} master {name} up")
        if bridge.has_arp == (switch.type == "private"):
            await hosted.set_reachable(self._run, bridge, switch.type != "private")
        if switch.mtu:
            await self._widen(switch.mtu, name)
        if not bridge.is_up:
            await self._silence(name)
            await self._ip(f"link set dev {name} up")
        if switch.type == "internal":
            await hosted.give_address(self._run, bridge, switch.address)

    async def _widen(self, mtu: int, name: str) -> None:
        """A packet of that size passes the bridge, its uplink and all its ports."""
        narrow = [port for port in await iproute.ports(self._run, name) if port.mtu < mtu]
        lines = [f"link set dev {port.name} mtu {mtu}" for port in narrow]
        bridge = await self._existing(name)
        if bridge.mtu != mtu or lines:  # set by us, it does not follow its ports any more
            await self._batch(*lines, f"link set dev {name} mtu {mtu}")

    async def change(self, old: Switch, new: Switch) -> None:
        """Make the bridge of `old` that of `new`; what is plugged in stays so. May be repeated.

        Raises SwitchUnusable, NetworkFailed.
        """
        name = bridge_name(old)
        async with self._lock:
            await self._uplink(new)
            bridge = await iproute.device(self._run, name)
            if bridge is not None and bridge.alias == MARK + old.name:
                if old.uplink and old.uplink != new.uplink:
                    await self._swap(name, old.uplink, new.uplink)
                if old.address and old.address != new.address:
                    await hosted.drop_address(self._run, bridge, old.address)
                if old.mtu and not new.mtu:
                    await self._ip(f"link set dev {name} mtu {hosted.DEFAULT_MTU}")
            await self._ensure(new)

    async def _swap(self, bridge: str, old: str, new: str) -> None:
        """One uplink for another, never both at once: they may be two ends of the same network."""
        present = {port.name for port in await iproute.ports(self._run, bridge)}
        tagged = ""
        if old in present and new:
            tagged = await self._run(["bridge", "-j", "vlan", "show", "dev", old], "")
        joins = [f"link set dev {new} master {bridge} up"] if new else []
        leaves = [f"link set dev {old} nomaster"] if old in present else []
        await self._batch(*leaves, *joins)
        if lines := vlans.lines(new, vlans.FRESH, vlans.read(tagged) or vlans.FRESH, ""):
            await self._bridge(*lines)

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
            ports = [port.name for port in await iproute.ports(self._run, name)]
            others = [port for port in ports if port != switch.uplink]
            if others:
                raise SwitchHasPorts(switch=switch.name, bridge=name, ports=", ".join(others))
            await self._ip(f"link del dev {name}")

    async def facts(self, switch: Switch) -> SwitchFacts:
        """The state of `switch` now; `problem` says what keeps VMs from using it."""
        filters, problem, mtu = False, "", 0
        try:
            uplink = await self._uplink(switch)
            bridge = await iproute.device(self._run, bridge_name(switch))
            if bridge is None:
                problem = f"its bridge {bridge_name(switch)} is gone; starting a VM makes it again"
            else:
                require_bridge(switch, bridge, uplink)
                filters = bridge.is_filtering
                problem = fault(switch, bridge, uplink)
                mtu = min(one.mtu for one in (bridge, uplink) if one is not None)
        except SternaError as error:
            problem = str(error.facts.get("reason", error.message))
        return SwitchFacts(switch=switch, vlans=filters, problem=problem, mtu=mtu)

    async def has_link(self, name: str) -> bool:
        """Whether something answers at the other end of that interface's cable, or would if it were up."""
        found = await iproute.device(self._run, name) if name else None
        if found is not None and not found.is_up and not found.master:
            await self._ip(f"link set dev {name} up")  # only then the kernel looks
            found = await iproute.device(self._run, name)
        return found is not None and found.has_carrier

    async def mtu_of(self, name: str) -> int:
        """The largest packet that the interface passes; 0: there is no such interface."""
        found = await iproute.device(self._run, name) if name else None
        return 0 if found is None else found.mtu

    async def uplinks(self) -> tuple[str, ...]:
        """Interfaces that are free to be the uplink of a switch, by name."""
        return tuple(sorted(
            one.name
            for one in await iproute.devices(self._run)
            if one.kind not in ("bridge", "tun") and one.name != "lo"
            if not (one.master or one.addresses)
        ))  # fmt: skip

    # ---- ports -----------------------------------------------------------------------------

    async def open_tap(
        self, name: str, switch: Switch, vlan: int | None = None, trunk: str = ""
    ) -> int:
        """A new tap, plugged into `switch` and up: its descriptor, for QEMU (`tap,fd=`).

        It is gone when the last copy of the descriptor is closed. Raises NetworkFailed,
        SwitchUnusable, VLANUnsupported; then it is gone already.
        """
        await self.ensure(switch)
        fd = await taps.open_tap(name)
        try:
            await self.plug(name, switch, vlan, trunk)
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def plug(
        self, port: str, switch: Switch, vlan: int | None = None, trunk: str = ""
    ) -> None:
        """Join an interface that is down to `switch`, and bring it up.

        Raises NetworkFailed, SwitchUnusable, VLANUnsupported.
        """
        name = bridge_name(switch)
        bridge = await self._existing(name)
        self._require_tags(switch, bridge, vlan, trunk)
        await self._silence(port)
        # A bridge takes the smallest MTU of its ports: a new tap's 1500 would shrink it.
        await self._ip(f"link set dev {port} mtu {bridge.mtu} master {name}")
        wants = vlans.wanted(vlan, trunk)
        if lines := vlans.lines(port, vlans.FRESH, wants, switch.uplink):
            await self._bridge(*lines)
        await self._ip(f"link set dev {port} up")
        if bridge.bridge.get("forward_delay") and not bridge.bridge.get("stp_state"):
            # Somebody else's bridge, set to be deaf at first; without STP there is no loop to fear.
            await self._run(["bridge", "link", "set", "dev", port, "state", "3"], "")

    async def replug(
        self, port: str, switch: Switch, vlan: int | None = None, trunk: str = ""
    ) -> bool:
        """Bring a port that is in use to that switch and VLAN; whether it was elsewhere.

        Its guest's link stays up: only frames of these milliseconds are lost. Raises what `plug`
        does; what cannot be is found out before anything is changed.
        """
        await self.ensure(switch)
        name = bridge_name(switch)
        bridge = await self._existing(name)
        self._require_tags(switch, bridge, vlan, trunk)
        now = await self._existing(port)
        if now.master == name and now.is_up:
            if not bridge.is_filtering:
                return False
            has = vlans.read(await self._run(["bridge", "-j", "vlan", "show", "dev", port], ""))
            wants = vlans.wanted(vlan, trunk)
            if has == wants:
                return False
            await self._bridge(*vlans.lines(port, has, wants, switch.uplink))
            return True
        # Down meanwhile, which its guest does not see: no frame of one VLAN gets into another.
        leaves = [f"link set dev {port} nomaster"] if now.master else []
        await self._batch(f"link set dev {port} down", *leaves)
        await self.plug(port, switch, vlan, trunk)
        return True

    def _require_tags(self, switch: Switch, bridge: Device, vlan: int | None, trunk: str) -> None:
        """Raises VLANUnsupported, SwitchUnusable."""
        if vlan is None and not trunk:
            return
        if not bridge.can_tag:
            raise VLANUnsupported(switch=switch.name, vlan=vlan or trunk, host=self._host)
        if not bridge.is_filtering:
            raise SwitchUnusable(
                switch=switch.name,
                reason=f"{bridge.name} was not made by Sterna and does not keep VLANs apart",
                fix=f"Let it: ip link set dev {bridge.name} type bridge vlan_filtering 1",
            )

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

    async def _bridge(self, *lines: str) -> None:
        await self._run(["bridge", "-batch", "-"], "\n".join(lines) + "\n")

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


def _random_mac() -> str:
    """A local address of the bridge's own: otherwise it changes with each tap that comes and goes."""
    return "56:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5))
