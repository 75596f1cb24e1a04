"""What the source tells the target of a VM that wants to come: the reservation it asks for."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace

from sterna.model.disk import node_name
from sterna.model.reservation import CarrierOffer, MirrorOffer, Reservation
from sterna.model.travel import Mirroring, Travel
from sterna.vms.machine import VM
from sterna.vms.service import VMs

UNMADE = CarrierOffer(encrypted=True)  # for a question; what this host would do is its own check
Bitmaps = Mapping[str, tuple[str, ...]]  # names of dirty bitmaps, by disk


async def bitmaps(vm: VM, travel: Travel) -> Bitmaps:
    """The dirty bitmaps that can travel with the disks that are mirrored."""
    found: dict[str, tuple[str, ...]] = {}
    for mirror in travel.mirrors:
        disk = mirror.disk
        if travel.disk(disk.name).format == "qcow2":  # a raw image has nowhere to keep them
            names = await vm.blocks.bitmaps(node_name(disk.pool, disk.volume))
            found |= {disk.name: names} if names else {}
    return found


def reservation(  # noqa: PLR0913 - the last three are known only when it is asked for in earnest
    vm: VM,
    vms: VMs,
    travel: Travel,
    *,
    operation: str = "",
    carried: Bitmaps | None = None,
    carrier: CarrierOffer | None = None,
) -> Reservation:
    """Of the VM as it is now; without `operation` it is only a question."""
    record = vm.record
    nvram = vms.launcher.nvram(vm.id)
    return Reservation(
        operation=operation,
        epoch=record.ownership.epoch + 1,
        source=vms.config.name,
        spec=travel.spec,
        live=vm.process is not None,
        paused=record.paused,
        accel=record.process.accel if record.process else "",
        nvram=base64.b64encode(nvram.read_bytes()).decode() if nvram.exists() else "",
        tpm=_tpm(vm, vms),
        protector=record.protector,
        created=record.created,
        cpu_next=record.cpu_next,
        notes=record.notes,
        checkpoints=travel.checkpoints,
        at=travel.at,
        saved=travel.saved,
        files=tuple(parcel.offer for parcel in travel.files),
        mirrors=tuple(_with(mirror, carried or {}) for mirror in travel.mirrors),
        carrier=carrier or UNMADE,
        grace_s=vms.config.migration.grace,
        seeded=travel.is_sown,
    )


def _tpm(vm: VM, vms: VMs) -> str:
    """Of a VM that is off. QEMU carries that of one that runs."""
    if not vm.record.spec.tpm or vm.process is not None:
        return ""
    return base64.b64encode(vms.launcher.tpms.state(vm.id)).decode()


def _with(mirror: Mirroring, carried: Bitmaps) -> MirrorOffer:
    return replace(mirror.offer, bitmaps=carried.get(mirror.disk.name, ()))
