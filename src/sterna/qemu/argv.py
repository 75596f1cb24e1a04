"""From a VM's spec to QEMU's command line. Pure but for the look at installed firmware.

Promises: the same spec gives the same machine on every host; device order, PCI addresses, ids and
node names are an ABI between the two ends of a move and are fixed here (see `Layout`). vCPUs never
start by themselves (`-S`). Never opens or creates anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from sterna.errors import BadSpec, FirmwareMissing
from sterna.model.cpu import LEVELS, CPUChoice, needs
from sterna.model.vm import CD, NIC, Disk, Firmware, VMSpec
from sterna.qemu import nodes
from sterna.qemu.nodes import Layer
from sterna.units import KIB

# Under emulation QEMU before 9.0 loses guest writes during a migration (seen with 7.2.22: kernel
# stacks arrive stale, the guest panics): taking the dirty bits of a RAM block in words of 64 pages,
# it forgets to take them out of the emulated TLB too. A block that is no multiple of 64 pages goes
# page by page, which is right. All emulated guests get the odd bytes, so that their machine is the
# same on every host; the smallest step that QEMU allows is 8 KiB.
TCG_ODD_BYTES = 8 * KIB
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
AGENT_CHANNEL = "org.qemu.guest_agent.0"

# Code and template of the variables: 4 MiB, without secure boot. The size is a part of the
# migration ABI, so the older 2 MiB builds are not taken in their stead.
FIRMWARE_BUILDS = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian, Ubuntu
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),  # Arch
)


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a running VM's sockets and logs are. Names are short: Unix sockets end at 107 bytes."""

    directory: Path

    @property
    def control(self) -> Path:
        return self.directory / "qmp"

    @property
    def oob(self) -> Path:
        return self.directory / "oob"

    @property
    def serial(self) -> Path:
        return self.directory / "serial"

    @property
    def vnc(self) -> Path:
        return self.directory / "vnc"

    @property
    def agent(self) -> Path:
        return self.directory / "agent"

    @property
    def tpm(self) -> Path:
        """Where its swtpm waits for it."""
        return self.directory / "tpm"

    @property
    def tpm_pid(self) -> Path:
        return self.directory / "tpm.pid"

    @property
    def tpm_log(self) -> Path:
        return self.directory / "tpm.log"

    @property
    def log(self) -> Path:
        """What QEMU itself says."""
        return self.directory / "qemu.log"

    @property
    def console_log(self) -> Path:
        """What the guest writes on its serial console."""
        return self.directory / "console.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareFiles:
    """UEFI: the code, which VMs share, and one VM's own variables, copied once from `template`."""

    code: Path
    template: Path
    variables: Path

    @classmethod
    def find(cls, variables: Path) -> FirmwareFiles:
        """The installed firmware, with a VM's `variables`. Raises FirmwareMissing."""
        for code, template in FIRMWARE_BUILDS:
            if Path(code).is_file() and Path(template).is_file():
                return cls(code=Path(code), template=Path(template), variables=variables)
        raise FirmwareMissing(path=FIRMWARE_BUILDS[0][0])


class Layout:
    """PCI addresses, the same for every VM so that no device moves when another is added.

    NICs come first and in a range of their own: a guest names its NICs after bus numbers, which
    firmware hands out in this order. A root port each, because only there can a device be plugged
    and unplugged while the guest runs; SPARE more of each kind wait for that. What is never
    unplugged sits on the root bus, which costs no port and boots faster.
    """

    VGA = "0x1"
    NIC_SLOTS = range(0x02, 0x08)
    DISK_SLOTS = range(0x08, 0x10)
    SERIAL, RNG, BALLOON = "0x1a", "0x1b", "0x1c"
    SPARE = 2


def build(  # noqa: PLR0913 - one argument for each thing that differs between two hosts
    spec: VMSpec,
    *,
    paths: RunPaths,
    binary: str,
    accel: Literal["kvm", "tcg"],
    tap_fds: Mapping[str, int],
    chains: Mapping[str, Sequence[Layer]],
    media: Mapping[str, Layer] = MappingProxyType({}),
    incoming: bool = False,
    firmware: FirmwareFiles | None = None,
    arguments: Sequence[str] = (),
    vhost_fds: Mapping[str, int] | None = None,
    masked: Sequence[str] = (),
) -> list[str]:
    """The command line. `tap_fds` and `chains` (images, the top first) by the names of the spec's NICs and disks,
    `media` by those of CD drives that are not empty;
    with `vhost_fds` (open /dev/vhost-net, by NIC) the host's kernel carries the frames. `masked`: features of
    the processor that guests of this host shall not have.

    Raises BadSpec for a machine that cannot be built.
    """
    return [
        binary,
        *arguments,
        *_machine(spec, accel, firmware, masked),
        *monitors(paths),
        *_ports("nic", len(spec.nics), Layout.NIC_SLOTS),
        *_ports("disk", len(spec.disks), Layout.DISK_SLOTS),
        *_graphics(spec, paths),
        *_consoles(paths),
        *_fixed_devices(),
        *_tpm(spec, paths),
        *_each(_nic(nic, i, tap_fds, vhost_fds or {}) for i, nic in enumerate(spec.nics)),
        *_each(_disk(disk, i, chains[disk.name]) for i, disk in enumerate(spec.disks)),
        *_each(
            _cd(cd, i, len(spec.disks) + i + 1, media.get(cd.name)) for i, cd in enumerate(spec.cds)
        ),
        *_boot(spec),
        *(("-incoming", "defer") if incoming else ()),
    ]


def _each(parts: Iterable[list[str]]) -> Iterable[str]:
    return chain.from_iterable(parts)


def _machine(
    spec: VMSpec, accel: str, firmware: FirmwareFiles | None, masked: Sequence[str]
) -> list[str]:
    machine = f"{spec.machine or 'q35'},memory-backend=ram,dump-guest-core=off"
    flash: list[str] = []
    if spec.firmware is Firmware.UEFI:
        if firmware is None:
            raise BadSpec(where="firmware", reason="UEFI needs its firmware files")
        machine += ",pflash0=fw-code,pflash1=fw-vars"
        flash = [
            *_flash("fw-code", firmware.code, read_only=True),
            *_flash("fw-vars", firmware.variables, read_only=False),
        ]
    memory = spec.memory + (TCG_ODD_BYTES if accel == "tcg" else 0)
    return [
        *("-name", f"guest={spec.name},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-S"),
        *("-sandbox", SANDBOX),
        *(("-uuid", spec.id) if spec.id else ()),
        *flash,
        *("-object", f"memory-backend-memfd,id=ram,size={memory},share=on"),
        *("-machine", machine),
        *("-accel", accel),
        *("-cpu", _cpu(spec.processor, accel, masked)),
        *("-m", f"size={memory // KIB}K"),
        # Spelled out: what QEMU would choose has changed between its versions.
        *("-smp", f"cpus={spec.vcpus},sockets=1,cores={spec.vcpus},threads=1"),
        *("-rtc", "base=utc"),
        *("-boot", "menu=off,strict=on"),
    ]


def _flash(node: str, path: Path, *, read_only: bool) -> list[str]:
    layer = Layer(node=node, path=path, format="raw")
    return _blockdevs(nodes.chain([layer], read_only=read_only))


def _cpu(wanted: CPUChoice, accel: str, masked: Sequence[str]) -> str:
    model, level = wanted.model, LEVELS.get(wanted.model)
    if model == "host" and accel != "kvm":
        raise BadSpec(where="cpu", reason="host needs KVM, and this host emulates")
    if level is None:
        # A processor that lacks a feature must refuse the guest, not run it with less. The emulator
        # lacks some of every model of QEMU and says so in the log.
        off = [f"{feature}=off" for feature in masked]
        return ",".join([model, *off, *(["enforce=on"] if accel == "kvm" else [])])
    if hidden := needs(wanted).intersection(masked):
        reason = f"this host keeps {', '.join(sorted(hidden))} from its guests"
        raise BadSpec(where="cpu", reason=reason)
    # A level is the same everywhere, or the guest does not start.
    on = (f"{feature}=on" for feature in (*level, *wanted.features))
    return ",".join(["qemu64", *on, "enforce=on"])


def _tpm(spec: VMSpec, paths: RunPaths) -> list[str]:
    """At its fixed address, so that no other device moves."""
    if not spec.tpm:
        return []
    return [
        *("-chardev", f"socket,id=tpm,path={_escape(paths.tpm)}"),
        *("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        *("-device", "tpm-crb,tpmdev=tpm0"),
    ]


def monitors(paths: RunPaths) -> list[str]:
    """Two: the second answers out of band, from a thread of its own, while the first hangs."""
    arguments = []
    for name, path in (("control", paths.control), ("oob", paths.oob)):
        arguments += [
            *("-chardev", f"socket,id={name},path={_escape(path)},server=on,wait=off"),
            *("-mon", f"chardev={name},mode=control"),
        ]
    return arguments


def _ports(kind: str, count: int, slots: range) -> list[str]:
    """Root ports for `count` devices and the spare ones, eight in each slot."""
    if count + Layout.SPARE > len(slots) * 8:
        raise BadSpec(where=f"{kind}s", reason=f"{count} are more than a machine has ports for")
    arguments = []
    for index in range(count + Layout.SPARE):
        slot, function = slots[index // 8], index % 8
        multi = ",multifunction=on" if function == 0 else ""
        arguments += [
            "-device",
            (
                f"pcie-root-port,id={kind}-port-{index},bus=pcie.0,addr={slot:#x}.{function:#x}{multi}"
                f",chassis={slot * 8 + function}"
            ),
        ]
    return arguments


def _graphics(spec: VMSpec, paths: RunPaths) -> list[str]:
    if not spec.graphics:
        return ["-display", "none"]
    return [
        *("-device", f"VGA,id=vga,bus=pcie.0,addr={Layout.VGA}"),
        *("-display", "none"),
        *("-vnc", f"unix:{_escape(paths.vnc)}"),
    ]


def _consoles(paths: RunPaths) -> list[str]:
    """The serial console, kept in a log too, and the channel of the guest's agent."""
    return [
        "-chardev",
        (
            f"socket,id=serial,path={_escape(paths.serial)},server=on,wait=off"
            f",logfile={_escape(paths.console_log)},logappend=on"
        ),
        *("-device", "isa-serial,id=serial0,chardev=serial"),
        *("-chardev", f"socket,id=agent,path={_escape(paths.agent)},server=on,wait=off"),
        *("-device", _fixed("virtio-serial-pci", "vserial", Layout.SERIAL)),
        "-device",
        f"virtserialport,id=agent0,bus=vserial.0,nr=1,chardev=agent,name={AGENT_CHANNEL}",
    ]


def _fixed_devices() -> list[str]:
    return [
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-device", _fixed("virtio-rng-pci", "rng", Layout.RNG) + ",rng=entropy"),
        *("-device", _fixed("virtio-balloon-pci", "balloon", Layout.BALLOON)),
    ]


def _fixed(driver: str, name: str, address: str) -> str:
    """A virtio device on the root bus; without the interface of 2010, which would be there too."""
    return f"{driver},id={name},bus=pcie.0,addr={address},disable-legacy=on"


def _nic(
    nic: NIC, index: int, tap_fds: Mapping[str, int], vhost_fds: Mapping[str, int]
) -> list[str]:
    vhost = f",vhost=on,vhostfd={vhost_fds[nic.name]}" if nic.name in vhost_fds else ""
    mac = f",mac={nic.mac}" if nic.mac else ""
    return [
        *("-netdev", f"tap,id=net-{nic.name},fd={tap_fds[nic.name]}{vhost}"),
        "-device",
        # Without a boot ROM: its size is a part of the migration ABI and differs between builds.
        (
            f"virtio-net-pci,id=nic-{nic.name},netdev=net-{nic.name}{mac}"
            f",bus=nic-port-{index},addr=0x0,romfile="
        ),
    ]


def _disk(disk: Disk, index: int, layers: Sequence[Layer]) -> list[str]:
    return [
        *_blockdevs(nodes.chain(layers, read_only=disk.read_only)),
        "-device",
        (
            f"virtio-blk-pci,id=blk-{disk.name},drive={layers[0].node},serial={disk.name}"
            f",bus=disk-port-{index},addr=0x0,bootindex={index + 1}"
        ),
    ]


def _cd(cd: CD, port: int, bootindex: int, medium: Layer | None) -> list[str]:
    """A drive at the machine's own AHCI controller, which every guest can read without a driver of
    ours. After the disks in the order of booting: an installed system starts, with the CD still in.
    """
    if medium is None:
        opened, drive = [], ""
    else:
        opened = _blockdevs(nodes.image(medium, backing=None, read_only=True))
        drive = f",drive={medium.node}"
    device = f"ide-cd,id={cd_device(cd.name)},bus=ide.{port}{drive},bootindex={bootindex}"
    return [*opened, "-device", device]


def cd_device(name: str) -> str:
    """Id of a CD drive in QEMU."""
    return f"cd-{name}"


def _blockdevs(options: Iterable[nodes.Options]) -> list[str]:
    return [part for one in options for part in ("-blockdev", json.dumps(one))]


def _boot(spec: VMSpec) -> list[str]:
    if spec.boot is None:
        return []
    return [
        *("-kernel", spec.boot.kernel),
        *(("-initrd", spec.boot.initrd) if spec.boot.initrd else ()),
        *(("-append", spec.boot.cmdline) if spec.boot.cmdline else ()),
    ]


def _escape(path: Path) -> str:
    """A comma ends a value in QEMU's options unless it is doubled."""
    return str(path).replace(",", ",,")
