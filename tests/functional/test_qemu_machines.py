"""Every machine that we build, shown to a real QEMU: it starts, has room for more, and moves."""

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from qemu_rig import BINARY, in_a_loop, machine, move, until

from machines import FULL, MACHINE, VARIANTS, Variant, firmware
from sterna.config import QEMU
from sterna.lab.console import GuestConsole
from sterna.lab.guest import image
from sterna.model.vm import DirectBoot, Firmware
from sterna.qemu import capabilities

pytestmark = pytest.mark.functional


@pytest.fixture(scope="session")
def runs_kvm() -> bool:
    """Whether this machine runs guests under KVM."""
    guest = image.build()
    return asyncio.run(capabilities.choose_accel(QEMU(probe_kernel=guest.kernel)))[0] == "kvm"


@pytest.mark.parametrize("name", VARIANTS)
def test_qemu_accepts_each_machine(name: str, tmp_path: Path, runs_kvm: bool) -> None:
    variant = VARIANTS[name]
    if variant.accel == "kvm" and not runs_kvm:
        pytest.skip("guests do not run under KVM here")
    if variant.vhost and not os.access("/dev/vhost-net", os.R_OK | os.W_OK):
        pytest.skip("this kernel has no vhost-net")
    asyncio.run(accepted(variant, tmp_path))


async def accepted(variant: Variant, folder: Path, binary: str = BINARY, *more: str) -> None:
    """QEMU starts it, all of it is there, and it ends when told."""
    if variant.spec.boot is not None:  # the golden names are nobody's
        guest = image.build()
        boot = replace(variant.spec.boot, kernel=str(guest.kernel), initrd=str(guest.initrd))
        variant = replace(variant, spec=replace(variant.spec, boot=boot))
    async with machine(variant, folder, binary=binary, arguments=more) as vm:
        status = "inmigrate" if variant.incoming else "prelaunch"
        assert await vm.qmp.query_status() == status
        await vm.qmp.ping_oob()
        assert "Seccomp:\t2" in status_of(vm.process.pid)  # the cage is closed
        blocks = await vm.session.execute("query-block")
        assert {one["qdev"].split("/")[3] for one in blocks if "virtio" in one["qdev"]} == {
            f"blk-{disk.name}" for disk in variant.spec.disks
        }
        cards = await vm.session.execute("query-rx-filter")
        assert {one["name"] for one in cards} == {f"nic-{one.name}" for one in variant.spec.nics}
        for socket in (vm.paths.serial, vm.paths.agent):
            assert socket.is_socket()
        assert vm.paths.vnc.exists() == variant.spec.graphics
        await vm.qmp.quit()
        assert await vm.process.wait() == 0
        assert "error" not in vm.process.log_tail().lower()


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


@in_a_loop
async def test_a_disk_and_a_nic_can_be_plugged_into_a_running_machine(tmp_path: Path) -> None:
    async with machine(VARIANTS["bios"], tmp_path) as vm:
        await vm.qmp.cont()
        ask = vm.session.execute
        await ask("blockdev-add", {"driver": "null-co", "node-name": "new", "size": 1 << 20})
        await ask(
            "device_add",
            {"driver": "virtio-blk-pci", "id": "d", "drive": "new", "bus": "disk-port-1"},
        )
        await ask("netdev_add", {"type": "hubport", "id": "n", "hubid": 0})
        await ask(
            "device_add",
            {"driver": "virtio-net-pci", "id": "c", "netdev": "n", "bus": "nic-port-1"},
        )
        cards = await ask("query-rx-filter")
        assert {one["name"] for one in cards} == {"nic-net0", "c"}


# ---- moves between two of them -------------------------------------------------------------


def lab_machine() -> Variant:
    """All devices, and the lab's guest working in memory."""
    guest = image.build()
    boot = DirectBoot(
        kernel=str(guest.kernel),
        initrd=str(guest.initrd),
        cmdline=image.cmdline(mem="16:16:random"),
    )
    return Variant(replace(FULL, memory=256 << 20, vcpus=1, boot=boot))


async def moved(variant: Variant, folder: Path, source: dict, target: dict) -> None:
    """The lab's guest boots on one QEMU and goes on, memory unharmed, on another."""
    waiting = replace(variant, incoming=True)
    async with (
        machine(variant, folder / "a", shared=folder, **source) as a,
        machine(waiting, folder / "b", shared=folder, **target) as b,
    ):
        await a.qmp.cont()
        async with GuestConsole(a.paths.serial) as console:
            await console.ready()
            before = (await console.ask("status"))["mem"]["writes"]
        await move(a, b)
        assert await a.qmp.query_status() == "postmigrate"
        await a.qmp.quit()
        async with GuestConsole(b.paths.serial) as console:
            assert (await console.ask("verify"))["bad"] == 0

            async def writes() -> bool:
                return (await console.ask("status"))["mem"]["writes"] > before

            await until(writes)
        await b.qmp.quit()
        assert await b.process.wait() == 0


@in_a_loop
async def test_a_guest_moves_between_two_machines_of_the_same_spec(tmp_path: Path) -> None:
    await moved(lab_machine(), tmp_path, {}, {})


@in_a_loop
async def test_uefi_variables_travel_with_the_guest(tmp_path: Path) -> None:
    variant = lab_machine()
    variant = replace(variant, spec=replace(variant.spec, firmware=Firmware.UEFI))
    await moved(variant, tmp_path, {}, {})
    left, come = ((tmp_path / end / "variables.fd").read_bytes() for end in "ab")
    assert come == left
    assert come != firmware(tmp_path).template.read_bytes()  # the firmware had written in them


# ---- QEMU 10 beside 7.2 --------------------------------------------------------------------


@pytest.fixture(scope="session")
def newer() -> dict:
    """QEMU 10 in a folder of its own, and what it must be told."""
    script = Path(__file__).parents[2] / "scripts" / "qemu10"
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    binary, *arguments = done.stdout.split()
    return {"binary": binary, "arguments": tuple(arguments)}


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].accel == "tcg"])
def test_qemu_10_accepts_each_machine(name: str, tmp_path: Path, newer: dict) -> None:
    asyncio.run(accepted(VARIANTS[name], tmp_path, newer["binary"], *newer["arguments"]))


@pytest.mark.long
@in_a_loop
async def test_qemu_10_says_what_it_can(newer: dict) -> None:
    found = await capabilities.probe(newer["binary"], newer["arguments"])
    assert found.version.startswith("10.")
    assert MACHINE in found.machines
    assert found.machines[0] == found.default_machine == "pc-q35-10.0"
    assert found.sandbox
    assert {"return-path", "events", "pause-before-switchover"} <= found.migration_capabilities
    assert "avail-switchover-bandwidth" in found.migration_parameters


@pytest.mark.long
@pytest.mark.parametrize("way", ["up", "down", "across"])
def test_a_guest_moves_between_qemu_versions(way: str, tmp_path: Path, newer: dict) -> None:
    source = {} if way == "up" else newer
    target = {} if way == "down" else newer
    asyncio.run(moved(lab_machine(), tmp_path, source, target))
