"""Streams of real QEMUs through the codec: equal byte for byte, pages known, the guest is whole."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from qemu_rig import in_a_loop, until
from through_codec import Codec, Relay

from sterna.lab.console import GuestConsole
from sterna.lab.guest import image
from sterna.qemu.commands import Monitor
from sterna.qemu.session import Session

pytestmark = pytest.mark.functional
SECOND = Path(os.environ.get("STERNA_SECOND_QEMU", "/nonexistent"))  # see scripts/second-qemu
HAS_SECOND = SECOND.exists()
MEMORY_KIB = (192 << 10) + 8  # odd: else an emulating QEMU 7.2 loses what the guest writes (ADR 8)
DIRTIED = "size_mb=48 rate_mb=5 pattern=touch fill=mixed"
BANDWIDTH = 200_000_000  # bytes/s, so that there are rounds


@dataclass(frozen=True)
class Machine:
    """A command line, and what its migration is told."""

    machine: str = "pc-q35-7.2"
    devices: tuple[str, ...] = ()
    second: bool = False  # the QEMU of SECOND
    has_disk: bool = False

    def argv(self, folder: Path, disk: Path) -> list[str]:
        program = ["qemu-system-x86_64"]
        if self.second:
            data = SECOND / "usr/share"
            program = [str(SECOND / "usr/bin/qemu-system-x86_64")]
            program += ["-L", str(data / "qemu"), "-L", str(data / "seabios")]
        guest = image.build()
        drive = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={disk}"
        return [
            *(*program, "-M", self.machine, "-accel", "tcg", "-cpu", "qemu64"),
            *("-m", f"{MEMORY_KIB}K", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-serial", f"unix:{folder}/serial,server=on,wait=off"),
            *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
            *("-qmp", f"unix:{folder}/oob,server=on,wait=off"),
            *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd)),
            *("-append", image.cmdline(), *self.devices),
            *(("-blockdev", drive, "-device", "virtio-blk,drive=disk") if self.has_disk else ()),
        ]


@dataclass(frozen=True)
class Running:
    qmp: Monitor
    folder: Path
    process: subprocess.Popen[bytes]

    async def ask(self, order: str) -> dict[str, object]:
        async with GuestConsole(self.folder / "serial") as console:
            await console.ready()
            return await console.ask(order, timeout_s=60)


@asynccontextmanager
async def running(machine: Machine, folder: Path, disk: Path, *more: str) -> AsyncIterator[Running]:
    await asyncio.to_thread(folder.mkdir)
    argv = [*machine.argv(folder, disk), *more]
    process = await asyncio.to_thread(subprocess.Popen, argv)
    try:
        session = await Session.connect(
            "tern", folder / "qmp", folder / "oob", is_alive=lambda: process.poll() is None
        )
        try:
            yield Running(Monitor(session), folder, process)
        finally:
            await session.close()
    finally:
        process.kill()
        process.wait()


async def must_be_whole(vm: Running) -> None:
    """The guest goes on there, and all its memory is as it wrote it."""
    before = await vm.ask("status")
    checked = await vm.ask("verify")
    assert (checked["pages"], checked["bad"]) == (48 << 8, 0)
    assert (await vm.ask("status"))["mem"]["writes"] > before["mem"]["writes"]


PC = Machine("pc-i440fx-7.2")
Q35 = Machine()
MANY = Machine(
    devices=(
        *("-vga", "std", "-device", "virtio-balloon", "-device", "virtio-rng-pci"),
        *("-device", "e1000e", "-device", "virtio-net-pci", "-device", "qemu-xhci"),
        *("-device", "pvpanic-pci", "-device", "ich9-intel-hda", "-smp", "2"),
        *("-object", "memory-backend-ram,id=extra,size=64M", "-device", "pc-dimm,memdev=extra"),
        *("-m", f"{MEMORY_KIB + (128 << 10)}K,slots=2,maxmem=1G"),
    )
)
TEN = Machine("pc-q35-10.0", second=True)


@dataclass(frozen=True)
class Case:
    source: Machine
    target: Machine
    postcopy: bool = False


LONG = pytest.mark.long
CASES = {
    "pc": Case(PC, PC),
    "several-blocks": Case(MANY, MANY),
    "dirty-bitmaps": Case(replace(Q35, has_disk=True), replace(Q35, has_disk=True)),
    "postcopy": Case(MANY, MANY, postcopy=True),
    "10.0": Case(TEN, TEN),
    "10.0-several-blocks-postcopy": Case(
        replace(MANY, machine="pc-q35-10.0", second=True),
        replace(MANY, machine="pc-q35-10.0", second=True),
        postcopy=True,
    ),
    "7.2-to-10.0": Case(Q35, replace(Q35, second=True)),
    "10.0-to-7.2": Case(replace(Q35, second=True), Q35),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=LONG) for name in CASES if CASES[name].postcopy]
)
@in_a_loop
async def test_a_move_with_post_copy_through_the_codec_is_equal_and_the_guest_whole(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    if (case.source.second or case.target.second) and not HAS_SECOND:
        pytest.skip("there is no second QEMU: make streams")
    disks = [tmp_path / "source.qcow2", tmp_path / "target.qcow2"]
    for disk in disks:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M"]
        await asyncio.to_thread(subprocess.run, create, check=True)
    with Relay(tmp_path) as relay:
        async with (
            running(case.source, tmp_path / "a", disks[0]) as source,
            running(case.target, tmp_path / "b", disks[1], "-incoming", "defer") as target,
        ):
            await source.ask(f"mem {DIRTIED}")
            await capable(source, target, case)
            await target.qmp.migrate_incoming(f"unix:{relay.exit}")
            await source.qmp.migrate(f"unix:{relay.entry}")
            if case.postcopy:
                await in_its_second_round(source)
                await source.qmp.migrate_start_postcopy()
            await until_completed(source)
            await until_completed(target)
            ram = (await source.qmp.session.execute("query-migrate"))["ram"]
            await must_be_whole(target)
    codec = relay.codecs[0]
    print(name, ram["normal"], ram["duplicate"], codec.literal_bytes, codec.encoder.stats)
    codec.must_have_known_the_pages()
    assert codec.page_records > 0.95 * ram["normal"]
    assert codec.zero_records > 0.95 * ram["duplicate"]


async def capable(source: Running, target: Running, case: Case) -> None:
    capabilities = {"events": True, "return-path": True, "postcopy-ram": case.postcopy}
    has_bitmaps = case.source.has_disk
    for vm in (source, target):
        await vm.qmp.migrate_set_capabilities(capabilities | {"dirty-bitmaps": has_bitmaps})
    await source.qmp.migrate_set_parameters(**{"max-bandwidth": BANDWIDTH, "downtime-limit": 1000})
    if has_bitmaps:
        await with_bitmaps(source)


async def with_bitmaps(vm: Running) -> None:
    for name in ("first", "second"):
        await vm.qmp.session.execute(
            "block-dirty-bitmap-add", {"node": "disk", "name": name, "persistent": True}
        )


async def in_its_second_round(vm: Running) -> None:
    async def come() -> bool:
        answer = await vm.qmp.session.execute("query-migrate")
        return answer.get("ram", {}).get("dirty-sync-count", 0) > 1

    await until(come)


async def until_completed(vm: Running) -> None:
    async def come() -> bool:
        status = (await vm.qmp.query_migrate()).status
        assert status not in ("failed", "cancelled")
        return status == "completed"

    await until(come)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=LONG) if "10.0" in name else name
        for name in CASES
        if not CASES[name].postcopy
    ],
)
@in_a_loop
async def test_a_saved_stream_that_was_taken_apart_starts_a_guest(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    if (case.source.second or case.target.second) and not HAS_SECOND:
        pytest.skip("there is no second QEMU: make streams")
    saved, again, disk = tmp_path / "saved", tmp_path / "again", tmp_path / "disk.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M"]
    await asyncio.to_thread(subprocess.run, create, check=True)
    async with running(case.source, tmp_path / "a", disk) as source:
        await source.ask(f"mem {DIRTIED}")
        await source.qmp.migrate_set_capabilities(
            {"events": True, "dirty-bitmaps": case.source.has_disk}
        )
        if case.source.has_disk:
            await with_bitmaps(source)
        await source.qmp.migrate_set_parameters(**{"max-bandwidth": BANDWIDTH})
        await source.qmp.migrate(f"exec:cat > {saved}")
        await until_completed(source)
        ram = (await source.qmp.session.execute("query-migrate"))["ram"]
    codec = Codec()
    stream = await asyncio.to_thread(saved.read_bytes)
    parts = [codec.take(stream[at : at + 3_777_777]) for at in range(0, len(stream), 3_777_777)]
    assert b"".join(parts) == stream
    codec.must_have_known_the_pages()
    assert codec.page_records > 0.95 * ram["normal"]
    assert codec.zero_records > 0.95 * ram["duplicate"]
    again.write_bytes(b"".join(parts))
    async with running(case.target, tmp_path / "b", disk, "-incoming", "defer") as target:
        await target.qmp.migrate_set_capabilities(
            {"events": True, "dirty-bitmaps": case.target.has_disk}
        )
        await target.qmp.migrate_incoming(f"exec:cat {again}")
        await until_completed(target)
        await must_be_whole(target)
