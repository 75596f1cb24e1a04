"""CDs into and out of the drives of a VM, while its guest runs or off.

Promises: the record is written before the drive is touched, so that a QEMU which is found again
after a crash is given what the record says; what can be refused is refused before either; a medium
that QEMU does not take leaves record and drive as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sterna.errors import BadSpec, DriveNotFound, DriveUnclear, MediumStuck, QMPError, VMWrongState
from sterna.model.vm import CD, MAX_CDS, CDEjection, CDInsertion, RunState
from sterna.vms import chain, media
from sterna.vms.machine import VM
from sterna.vms.service import VMs
from sterna.vms.view import view

log = logging.getLogger(__name__)

_SETTLED = frozenset({RunState.RUNNING, RunState.PAUSED, RunState.OFF})


class Drives:
    """The CD drives of this host's VMs."""

    def __init__(self, vms: VMs) -> None:
        self._vms = vms

    async def insert(self, ref: str, wanted: CDInsertion) -> dict[str, Any]:
        """Put a medium into a drive, in place of what is there; the VM's view.

        Without the name of a drive: into the only one, or the only one that is empty. Raises
        VMNotFound, VMBusy, VMWrongState, DriveNotFound, DriveUnclear, MediumRefused, MediumStuck,
        PoolNotFound, PoolUnusable, VolumeForbidden, and what QEMU is lost by.
        """
        vm = self._ready(ref, "insert a CD into")
        cd = _added(vm, wanted) if wanted.new_drive else _chosen(vm, wanted)
        with vm.lease("getting a CD"):
            new = replace(cd, pool=wanted.pool, volume=wanted.volume)
            if new.medium is not None:
                await media.require_readable(vm.name, new.medium, self._vms.launcher.pools)
                media.require_unwritten(vm.name, [new.medium], self._vms.used())
            await self._change(vm, cd, new)
        log.info("%s is in CD drive %s of %s now", new.medium, cd.name, vm.name)
        return view(vm, self._vms.config.name)

    async def eject(self, ref: str, wanted: CDEjection) -> dict[str, Any]:
        """Take a medium out, though its guest has it locked; the VM's view. An empty drive is fine.

        Without the name of a drive: out of the only one, or the only one that has a medium. Raises
        VMNotFound, VMBusy, VMWrongState, DriveNotFound, DriveUnclear, and what QEMU is lost by.
        """
        vm = self._ready(ref, "eject a CD of")
        cd = _chosen(vm, wanted)
        with vm.lease("giving a CD out"):
            await self._change(vm, cd, CD(name=cd.name))
        log.info("CD drive %s of %s is empty now", cd.name, vm.name)
        return view(vm, self._vms.config.name)

    def _ready(self, ref: str, action: str) -> VM:
        vm = self._vms.get(ref)
        self._vms.require_idle(vm)
        if vm.state not in _SETTLED:
            fix = f"See: sterna vm show {vm.name}"
            raise VMWrongState(action=action, vm=vm.name, state=vm.state, fix=fix)
        return vm

    async def _change(self, vm: VM, old: CD, new: CD) -> None:
        pools = self._vms.launcher.pools
        await media.write(vm, new)
        if vm.process is None:
            return
        try:
            await media.load(vm.blocks, new.name, chain.medium(new, pools))
        except BaseException as error:
            await media.write(vm, old)
            await media.put_back(vm, old, pools)
            if isinstance(error, QMPError) and new.medium is not None:
                reason = error.facts["reason"]
                raise MediumStuck(
                    medium=new.medium,
                    drive=new.name,
                    vm=vm.name,
                    reason=f"QEMU says: {reason}",
                    fix="Find out which program writes to it with: lsof "
                    f"{pools.volume_path(new.pool, new.volume)}",
                ) from error
            raise


def _added(vm: VM, wanted: CDInsertion) -> CD:
    """One more drive: nothing of the machine that a guest runs in, or goes on in, may change."""
    spec = vm.record.spec
    taken = {cd.name for cd in spec.cds}
    if vm.state is not RunState.OFF or vm.record.saved is not None:
        state = vm.state if vm.process else "saved, and its guest knows the drives that it has"
        fix = f"Shut it down first: sterna vm stop {vm.name}"
        raise VMWrongState(action="give a new CD drive to", vm=vm.name, state=state, fix=fix)
    name = wanted.drive or next(name for n in range(MAX_CDS + 1) if (name := f"cd{n}") not in taken)
    try:
        replace(spec, cds=(*spec.cds, CD(name=name)))
    except ValueError as error:
        raise BadSpec(where=f"CD drive {name} of {vm.name}", reason=str(error)) from error
    return CD(name=name)


def _chosen(vm: VM, wanted: CDInsertion | CDEjection) -> CD:
    """The drive that is meant."""
    cds = vm.record.spec.cds
    known = ", ".join(cd.name for cd in cds) or "none"
    if wanted.drive:
        named = next((cd for cd in cds if cd.name == wanted.drive), None)
        if named is None:
            raise DriveNotFound(vm=vm.name, drive=f" {wanted.drive}", known=known)
        return named
    if not cds:
        raise DriveNotFound(vm=vm.name, drive="", known=known)
    is_insertion = isinstance(wanted, CDInsertion)
    meant: Sequence[CD] = [cd for cd in cds if (cd.medium is None) == is_insertion]
    if len(cds) == 1:
        meant = cds
    if len(meant) == 1:
        return meant[0]
    raise DriveUnclear(
        vm=vm.name,
        known=", ".join(cd.name for cd in meant or cds),
        action="insert" if is_insertion else "eject",
        rest=f" {wanted.pool}/{wanted.volume}" if isinstance(wanted, CDInsertion) else "",
    )
