"""Starting a VM's QEMU: with its vCPUs stopped, its taps plugged in, its record written.

The same way for a VM that boots and for one that arrives: whoever launched it decides, by the
ownership rule, when its vCPUs run.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sterna.config import Config
from sterna.errors import (
    CPULacking,
    ImageMissing,
    MediumMissing,
    QEMULost,
    SternaError,
    VMStartFailed,
)
from sterna.host.network import Network
from sterna.host.registry import Pools, Switches
from sterna.host.taps import tap_name
from sterna.model.cpu import CPUChoice, CPUFacts, lacks
from sterna.model.vm import Firmware, VMRecord, VMSpec
from sterna.operations.runner import Runner
from sterna.qemu import argv, process
from sterna.qemu.argv import FirmwareFiles
from sterna.qemu.capabilities import Capabilities
from sterna.qemu.nodes import Layer
from sterna.vms import chain
from sterna.vms.machine import VM
from sterna.vms.tpm import TPMs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """What a host needs to start QEMUs."""

    config: Config
    host: str
    capabilities: Capabilities
    accel: Literal["kvm", "tcg"]
    network: Network
    switches: Switches
    pools: Pools
    runner: Runner
    tpms: TPMs
    cpu: CPUFacts = field(default_factory=CPUFacts)  # what guests can see of processors here

    async def launch(self, vm: VM, *, incoming: bool = False) -> None:
        """Start QEMU for `vm`, attach to it. On failure nothing of it is left running.

        Raises VMStartFailed with QEMU's own words, or what is missing on this host.
        """
        spec = vm.record.spec
        self.require_processor(spec.name, spec.processor)
        self.check_files(vm.record)
        vm.prepare_run_dir()
        taps: dict[str, int] = {}
        try:
            for index, nic in enumerate(spec.nics):
                switch = self.switches.get(nic.switch)
                taps[nic.name] = await self.network.open_tap(
                    tap_name(spec.id, index), switch, nic.vlan, nic.trunk
                )
            arguments = argv.build(
                spec,
                paths=vm.paths,
                binary=self.capabilities.binary,
                accel=self.accel,
                tap_fds=taps,
                chains=self.chains(vm.record),
                media=self.media(spec),
                incoming=incoming,
                firmware=self.firmware(spec),
                arguments=self.config.qemu.arguments,
                masked=self.cpu.masked,
            )
            tpm = await self.tpms.start(vm.record, vm.paths) if spec.tpm else None
            try:
                await self._spawn(vm, arguments, list(taps.values()))
            except BaseException:
                if tpm is not None:  # nobody may have connected, which would end it
                    tpm.kill()
                raise
        finally:
            for fd in taps.values():
                os.close(fd)  # QEMU holds its own copies

    async def _spawn(self, vm: VM, arguments: list[str], fds: Sequence[int]) -> None:
        started = await process.spawn(arguments, log=vm.paths.log, fds=fds)
        try:
            await vm.write(process=started.identity(self.accel))
            await vm.attach(started, self.runner)
        except BaseException as error:
            started.kill()
            await started.wait()
            if vm.record.process is not None:
                await vm.write(process=None)
            if isinstance(error, (QEMULost, SternaError)):
                raise VMStartFailed(vm=vm.name, reason=vm.last_words(), log=vm.paths.log) from error
            raise

    def require_processor(self, vm: str, choice: CPUChoice) -> None:
        """Raises CPULacking if a guest with that processor could not be started here."""
        if missing := lacks(choice, self.cpu, self.accel):
            raise CPULacking(host=self.host, vm=vm, cpu=choice, missing=", ".join(missing))

    def chains(self, record: VMRecord) -> dict[str, tuple[Layer, ...]]:
        """Where the images of each disk are on this host, the top first."""
        return {disk.name: chain.layers(record, disk, self.pools) for disk in record.spec.disks}

    def media(self, spec: VMSpec) -> dict[str, Layer]:
        """What is in each CD drive that is not empty."""
        found = {cd.name: chain.medium(cd, self.pools) for cd in spec.cds}
        return {name: layer for name, layer in found.items() if layer is not None}

    def firmware(self, spec: VMSpec) -> FirmwareFiles | None:
        """UEFI's code and this VM's variables; None for BIOS."""
        if spec.firmware is Firmware.BIOS:
            return None
        return FirmwareFiles.find(self.nvram(spec.id))

    def nvram(self, vm_id: str) -> Path:
        """The file of a VM's UEFI variables."""
        return self.config.state_dir / "nvram" / f"{vm_id}.fd"

    def check_files(self, record: VMRecord) -> None:
        """Raises ImageMissing or MediumMissing, naming the first file that is needed and not here."""
        boot = record.spec.boot
        needed: list[tuple[str, Path]] = []
        if boot is not None:
            needed.append(("kernel", Path(boot.kernel)))
            if boot.initrd:
                needed.append(("initrd", Path(boot.initrd)))
        for name, layers in self.chains(record).items():
            needed += [(f"disk {name}", layer.path) for layer in layers]
        for what, path in needed:
            if not path.is_file():
                raise ImageMissing(what=what, path=path, host=self.host)
        for cd in record.spec.cds:
            medium = chain.medium(cd, self.pools)
            if medium is not None and not medium.path.is_file():
                raise MediumMissing(
                    medium=cd.medium, drive=cd.name, vm=record.spec.name, host=self.host
                )

    def remove_files(self, spec: VMSpec) -> None:
        """What a host keeps beside the disks of a VM."""
        with contextlib.suppress(FileNotFoundError):
            self.nvram(spec.id).unlink()
        self.tpms.remove(spec.id)
