"""Machines of every kind that we build, for the golden command lines and to show them to QEMU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sterna.model.disk import node_name
from sterna.model.vm import CD, NIC, DirectBoot, Disk, Firmware, VMSpec
from sterna.qemu import argv
from sterna.qemu.argv import FirmwareFiles, RunPaths
from sterna.qemu.nodes import Layer

MACHINE = "pc-q35-7.2"
SMALL = VMSpec(
    name="tern", id="9d2b8f5e-6a51-4f0c-8d5e-1f2a3b4c5d6e", machine=MACHINE, graphics=False
)


def nics(count: int) -> tuple[NIC, ...]:
    return tuple(
        NIC(name=f"net{i}", switch="lan", mac=f"52:54:00:00:00:{i + 1:02x}") for i in range(count)
    )


def disks(count: int, **wishes: Any) -> tuple[Disk, ...]:
    return tuple(
        Disk(name=f"vd{chr(ord('a') + i)}", pool="default", volume=f"tern-{i}", **wishes)
        for i in range(count)
    )


@dataclass(frozen=True)
class Variant:
    """A spec, and what else `argv.build` is told."""

    spec: VMSpec
    accel: str = "tcg"
    incoming: bool = False
    vhost: bool = False
    folder: str = ""  # below the one that is given: a name that needs care

    def build(self, folder: Path, *, binary: str = "qemu-system-x86_64", **more: Any) -> list[str]:
        """The command line with all files below `folder`, and file descriptors from 10 on."""
        folder = folder / self.folder
        fds: Mapping[str, int] = {nic.name: 10 + i for i, nic in enumerate(self.spec.nics)}
        vhost = {name: fd + 10 for name, fd in fds.items()} if self.vhost else None
        options: dict[str, Any] = {
            "tap_fds": fds,
            "vhost_fds": vhost,
            "firmware": firmware(folder) if self.spec.firmware is Firmware.UEFI else None,
            "chains": chains(self.spec, folder),
            "media": media(self.spec, folder),
        }
        return argv.build(
            self.spec,
            paths=RunPaths(folder),
            binary=binary,
            accel=self.accel,
            incoming=self.incoming,
            **(options | more),
        )


def chains(spec: VMSpec, folder: Path) -> dict[str, list[Layer]]:
    """Each disk is one image in `folder`."""
    return {
        disk.name: [
            Layer(
                node=node_name(disk.pool, disk.volume),
                path=folder / disk.volume,
                format=disk.format,
            )
        ]
        for disk in spec.disks
    }


def media(spec: VMSpec, folder: Path) -> dict[str, Layer]:
    """Each CD is a file in `folder`."""
    return {
        cd.name: Layer(node=f"node-{cd.name}", path=folder / cd.volume, format="raw")
        for cd in spec.cds
        if cd.pool
    }


def firmware(folder: Path) -> FirmwareFiles:
    code, template = (Path(path) for path in argv.FIRMWARE_BUILDS[0])
    return FirmwareFiles(code=code, template=template, variables=folder / "variables.fd")


KERNEL = DirectBoot(kernel="/boot/vmlinuz", initrd="/boot/initrd.img", cmdline="console=ttyS0 ro")
FULL = replace(
    SMALL, vcpus=2, memory=1 << 30, nics=nics(1), disks=disks(1), graphics=True, tags=("web",)
)

VARIANTS: dict[str, Variant] = {
    "small": Variant(SMALL),
    "bios": Variant(FULL),
    "bios-incoming": Variant(FULL, incoming=True),
    "uefi": Variant(replace(FULL, firmware=Firmware.UEFI)),
    "uefi-incoming": Variant(replace(FULL, firmware=Firmware.UEFI), incoming=True),
    "direct-boot": Variant(replace(SMALL, nics=nics(1), boot=KERNEL)),
    "disks": Variant(
        replace(
            SMALL,
            disks=(
                *disks(1, format="raw"),
                Disk(name="cd", pool="default", volume="cd.iso", format="raw", read_only=True),
                Disk(name="data", pool="default", volume="data.qcow2"),
            ),
        )
    ),
    "more-than-a-slot": Variant(replace(SMALL, nics=nics(7), disks=disks(9))),
    "comma-in-path": Variant(replace(FULL, nics=()), folder="a,b"),
    "cds": Variant(
        replace(
            SMALL,
            disks=disks(1),
            cds=(CD(name="cd0", pool="isos", volume="debian.iso"), CD(name="cd1")),
        )
    ),
    "kvm": Variant(FULL, accel="kvm"),
    "kvm-host-vhost": Variant(replace(FULL, cpu="host"), accel="kvm", vhost=True),
    "model": Variant(replace(SMALL, cpu="Nehalem")),
}
