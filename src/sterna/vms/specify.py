"""From the spec that a user gives to the spec that is kept: every open choice is made once, here.

Pure functions: the identity, the machine type, MAC addresses and volume names of a VM never
change by themselves afterwards, because both ends of a move build the same machine from them.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Collection
from dataclasses import replace

from sterna.errors import QEMUUnsupported
from sterna.model.vm import NIC, Disk, VMSpec

OUI = "52:54:00"  # the prefix that QEMU guests use


def complete(spec: VMSpec, *, machines: Collection[str], newest: str, host: str) -> VMSpec:
    """`spec` with id, machine, MACs and volumes filled in.

    `machines` are the versioned types that the installed QEMU offers, `newest` is what "q35"
    means to it. Raises QEMUUnsupported for a machine type that it lacks.
    """
    machine = spec.machine or newest
    if machine not in machines:
        raise QEMUUnsupported(
            host=host,
            reason=f"it offers no machine type {machine}",
            fix=f"Leave the machine type out, or use {newest}",
        )
    return replace(
        spec,
        id=spec.id or str(uuid.uuid4()),
        machine=machine,
        disks=tuple(_disk(spec.name, disk) for disk in spec.disks),
        nics=tuple(_nic(nic) for nic in spec.nics),
    )


def _disk(vm: str, disk: Disk) -> Disk:
    return replace(disk, volume=disk.volume or f"{vm}-{disk.name}.{disk.format}")


def _nic(nic: NIC) -> NIC:
    return replace(nic, mac=nic.mac or random_mac())


def random_mac() -> str:
    """A MAC address of QEMU's prefix; 24 random bits."""
    return ":".join((OUI, *(f"{byte:02x}" for byte in secrets.token_bytes(3))))
