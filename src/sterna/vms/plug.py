"""Which switch each NIC of a VM is plugged into, changed while its guest runs.

Promises: the record is written before the cable is moved, so after a crash the cable goes where the
record says; what cannot be is refused before either; what fails is as it was before. The guest's
link stays up: it loses the frames of a few milliseconds, and the new switch is told where it is.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

from sterna.errors import BadSpec, NICNotFound, SternaError, VMWrongState
from sterna.host.taps import tap_name
from sterna.model.vm import NIC, NICChanges, OwnershipState, RunState
from sterna.vms.machine import VM
from sterna.vms.service import VMs
from sterna.vms.specify import random_mac
from sterna.vms.view import view

log = logging.getLogger(__name__)


class Plugs:
    """The cables between this host's VMs and its switches."""

    def __init__(self, vms: VMs) -> None:
        self._vms = vms

    async def change(self, ref: str, name: str, changes: NICChanges) -> dict[str, Any]:
        """Plug it in as wished; the VM's view. What is not given stays as it is.

        Raises VMNotFound, NICNotFound, VMBusy, VMWrongState, SwitchNotFound, SwitchUnusable,
        VLANUnsupported, BadSpec, NetworkFailed.
        """
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        with vm.lease("being plugged into another switch"):
            nics = vm.record.spec.nics
            index = next((i for i, nic in enumerate(nics) if nic.name == name), None)
            if index is None:
                known = ", ".join(nic.name for nic in nics) or "none"
                raise NICNotFound(vm=vm.name, nic=name, known=known)
            old, new = nics[index], self._changed(vm, nics[index], changes)
            self._vms.launcher.switches.require(new.switch, new.vlan, new.trunk)
            if new != old:
                await self._replace(vm, index, old, new)
        return view(vm, self._vms.config.name)

    def _changed(self, vm: VM, nic: NIC, changes: NICChanges) -> NIC:
        vlan = nic.vlan if changes.vlan is None else changes.vlan or None
        mac = random_mac() if changes.mac == "new" else changes.mac or nic.mac
        if mac != nic.mac and (vm.state is not RunState.OFF or vm.record.saved is not None):
            state = vm.state if vm.process else "saved, and its guest knows the old one"
            fix = f"Shut it down first: sterna vm stop {vm.name}"
            raise VMWrongState(
                action="give another MAC address to", vm=vm.name, state=state, fix=fix
            )
        try:
            return replace(
                nic,
                switch=changes.switch or nic.switch,
                vlan=vlan,
                trunk=nic.trunk if changes.trunk is None else changes.trunk,
                mac=mac,
            )
        except ValueError as error:
            raise BadSpec(where=f"NIC {nic.name} of {vm.name}", reason=str(error)) from error

    async def _replace(self, vm: VM, index: int, old: NIC, new: NIC) -> None:
        await self._write(vm, index, new)
        try:
            if vm.process is not None:
                await self._plug(vm, index)
        except BaseException:
            await self._write(vm, index, old)
            with contextlib.suppress(SternaError):
                await self._plug(vm, index)
            raise
        log.info("%s of %s is on switch %s now", new.name, vm.name, new.switch)

    @staticmethod
    async def _write(vm: VM, index: int, nic: NIC) -> None:
        nics = vm.record.spec.nics
        changed = (*nics[:index], nic, *nics[index + 1 :])
        await vm.write(spec=replace(vm.record.spec, nics=changed))

    async def _plug(self, vm: VM, index: int) -> None:
        """The cable goes where the record says, and the switch there learns of it."""
        nic, launcher = vm.record.spec.nics[index], self._vms.launcher
        switch = launcher.switches.get(nic.switch)
        port = tap_name(vm.id, index)
        if await launcher.network.replug(port, switch, nic.vlan, nic.trunk):
            with contextlib.suppress(SternaError):  # else it learns of the first frame
                await vm.qmp.announce_self()

    async def restore(self) -> None:
        """After a start: cables that a daemon which died had not moved, or had moved half."""
        for vm in self._vms.all():
            if vm.record.ownership.state is not OwnershipState.OWNED or vm.process is None:
                continue
            for index, nic in enumerate(vm.record.spec.nics):
                try:
                    await self._plug(vm, index)
                except SternaError as error:
                    log.error("%s of %s: %s", nic.name, vm.name, error)  # noqa: TRY400
