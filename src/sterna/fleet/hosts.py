"""Questions to several hosts at once: the processor that they share, and who knows a version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sterna.errors import HostUnreachable, NoBaseline, SternaError
from sterna.model.cpu import SHARED, Baseline, CPUChoice, baseline
from sterna.model.host import HostFacts
from sterna.model.machine import Upgrade, UpgradeWishes, left_behind, newest
from sterna.model.vm import VMChanges
from sterna.move.peer import Peers
from sterna.vms import change
from sterna.vms.service import VMs

ANSWER_S = 5.0  # a host that is well answers in milliseconds


@dataclass(frozen=True, slots=True)
class Silent:
    """A host that did not answer."""

    error: SternaError


class Fleet:
    """This host and those that it knows."""

    def __init__(self, vms: VMs, peers: Peers, gather: Callable[[], Awaitable[HostFacts]]) -> None:
        self._vms = vms
        self._peers = peers
        self._gather = gather

    @property
    def _name(self) -> str:
        return self._vms.config.name

    async def facts(self, names: Sequence[str] = ()) -> dict[str, HostFacts | Silent]:
        """Of `names`, or of this host and all that it knows, asked at once. Raises HostUnknown."""
        wanted = tuple(dict.fromkeys(names)) or (self._name, *self._peers.names)
        for name in wanted:
            if name != self._name:
                self._peers.get(name)
        answers = await asyncio.gather(*(self._ask(name) for name in wanted))
        return dict(zip(wanted, answers, strict=True))

    async def _ask(self, name: str) -> HostFacts | Silent:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await (
                    self._gather() if name == self._name else self._peers.get(name).facts()
                )
        except TimeoutError:
            url = "its socket" if name == self._name else self._peers.get(name).url
            reason = f"it took more than {ANSWER_S:g} s"
            return Silent(HostUnreachable(peer=name, url=url, reason=reason))
        except SternaError as error:
            return Silent(error)

    # ---- processors ------------------------------------------------------------------------

    async def baseline(self, names: Sequence[str] = ()) -> Baseline:
        """What they all can give their guests. Raises HostUnknown; HostUnreachable for any of them."""
        hosts: dict[str, Any] = {}
        for name, found in (await self.facts(names)).items():
            if isinstance(found, Silent):
                raise found.error
            hosts[name] = (found.qemu.accel, found.cpu)
        return baseline(hosts)

    async def change(self, ref: str, changes: VMChanges) -> dict[str, Any]:
        """Change a VM; its view. Raises BadSpec, CPULacking, NoBaseline and what `baseline` raises."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        choice = (
            None if changes.cpu_compat is None else await self._choice(changes.cpu_compat, changes)
        )
        with vm.lease("being changed"):
            if choice is not None:
                await change.set_processor(vm, choice, self._vms.launcher)
            if changes.placement:
                await change.set_placement(vm, changes.placement)
            if changes.tags is not None:
                await change.set_tags(vm, changes.tags)
        return self._vms.view(vm.id)

    async def _choice(self, wished: str, changes: VMChanges) -> CPUChoice:
        if wished != SHARED:
            return CPUChoice(model=wished)
        names = (self._name, *changes.share_with) if changes.share_with else ()
        shared = await self.baseline(names)
        if not shared.level:
            raise NoBaseline(hosts=", ".join(shared.hosts))
        return shared.choice

    # ---- versions --------------------------------------------------------------------------

    async def upgrade(self, ref: str, wishes: UpgradeWishes) -> Upgrade:
        """What raising a VM's version would mean; nothing is changed."""
        vm = self._vms.get(ref)
        to = self._to(wishes)
        if to != vm.record.spec.machine:
            change.require_upgradable(vm, to, self._vms.launcher)
        now = vm.record.spec.machine
        found = await self.facts()
        offers = {
            name: one.qemu.machines for name, one in found.items() if isinstance(one, HostFacts)
        }
        return Upgrade(
            vm=vm.name,
            machine=now,
            to=to,
            stays=tuple(name for name, machines in offers.items() if to in machines),
            left_behind=left_behind(now, to, offers),
            unknown={
                name: one.error.message for name, one in found.items() if isinstance(one, Silent)
            },
            memory=tuple(
                one.name
                for one in vm.record.checkpoints
                if one.memory is not None and not one.hidden and to != now
            ),
        )

    async def raise_version(self, ref: str, wishes: UpgradeWishes) -> dict[str, Any]:
        """Do it; the VM's view. Raises VMWrongState, VersionRefused."""
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with vm.lease("being upgraded"):
            await change.upgrade(vm, self._to(wishes), self._vms.launcher)
        return self._vms.view(vm.id)

    def _to(self, wishes: UpgradeWishes) -> str:
        return wishes.machine or newest(self._vms.launcher.capabilities.machines)
