"""The lab's guest by itself, in a bare QEMU: it boots, obeys, keeps what it wrote, and ends."""

import asyncio
import functools
import json
import subprocess
from contextlib import asynccontextmanager

import pytest

from sterna.lab import disklog
from sterna.lab.console import GuestConsole, OrderRefused
from sterna.lab.guest import image

pytestmark = pytest.mark.functional
DISK_BYTES = 16 << 20
END_S = 20  # a guest under emulation, on a busy machine, is off within this


@pytest.fixture(scope="session")
def guest():
    return image.build()


def in_a_loop(test):
    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


@asynccontextmanager
async def machine(folder, guest, *extra, cmdline=None):
    """A running guest: (its console, its QEMU). Killed at the end if it still runs."""
    argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "256"]
    argv += ["-nodefaults", "-display", "none", "-no-reboot", *extra]
    argv += ["-serial", f"unix:{folder}/serial,server=on,wait=off"]
    argv += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    argv += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
    argv += ["-append", cmdline or image.cmdline()]
    qemu = await asyncio.to_thread(subprocess.Popen, argv)
    try:
        async with GuestConsole(folder / "serial") as console:
            await console.ready()
            yield console, qemu
    finally:
        qemu.kill()
        qemu.wait()


async def ended(qemu):
    return await asyncio.to_thread(qemu.wait, END_S)


async def press_power(folder):
    """Says `system_powerdown` over QMP."""
    reader, writer = await asyncio.open_unix_connection(folder / "qmp")
    await reader.readline()
    for command in ("qmp_capabilities", "system_powerdown"):
        writer.write(json.dumps({"execute": command}).encode())
        await reader.readline()
    writer.close()


async def until(console, holds):
    """The first status for which `holds`; the test's own deadline ends the wait."""
    while not holds(status := await console.ask("status")):
        pass
    return status


@in_a_loop
async def test_memory_of_each_pattern_is_written_and_is_right(tmp_path, guest):
    async with machine(tmp_path, guest) as (console, _):
        for pattern in ("touch", "random", "text"):
            await console.ask(f"mem size_mb=16 rate_mb=16 pattern={pattern}")
            before = (await console.ask("status"))["mem"]["writes"]
            await until(console, lambda s, n=before: s["mem"]["writes"] > n + 4096)
            checked = await console.ask("verify")
            assert (checked["pages"], checked["bad"]) == (4096, 0), pattern
            assert checked["generations"] > 4096
        assert (await console.ask("status"))["mem"]["bad"] == 0
        await console.ask("mem size_mb=4 pattern=text")
        await console.ask("mem spoil")
        spoilt = await console.ask("verify")
        assert (spoilt["bad"], spoilt["first_bad"]) == (1, 512)
        await console.ask("mem off")
        for wrong in ("mem size_mb=900000", "mem size=1", "disk rate=5", "nonsense", "mem x"):
            with pytest.raises(OrderRefused):
                await console.ask(wrong)
        assert "poweroff" in (await console.ask("help"))["help"]


@in_a_loop
async def test_the_logs_of_all_disks_survive_power_off_and_go_on(tmp_path, guest):
    disks = {"vda": tmp_path / "disk.raw", "vdb": tmp_path / "disk.qcow2"}
    drives = []
    for name, path in disks.items():
        kind = path.suffix[1:]
        create = ["qemu-img", "create", "-q", "-f", kind, str(path), str(DISK_BYTES)]
        await asyncio.to_thread(subprocess.run, create, check=True)
        drives += ["-drive", f"file={path},format={kind},if=none,id={name}"]
        drives += ["-device", f"virtio-blk,drive={name}"]
    first = image.cmdline(disk="200:0:2", mem="8:8:touch")
    async with machine(tmp_path, guest, *drives, cmdline=first) as (console, qemu):
        status = await until(console, lambda s: s["disk"]["durable"] >= 50)
        checked = await console.ask("diskverify")
        assert (checked["bad"], checked["missing"]) == (0, 0)
        assert list(checked["disks"]) == list(status["disks"]) == list(disks)
        await press_power(tmp_path)
        assert await ended(qemu) == 0
    logs = {name: disklog.check(path, name) for name, path in disks.items()}
    for name, log in logs.items():
        assert log.proves(status["disks"][name]["durable"])
        assert log.slots == DISK_BYTES // 4096
    most = max(log.highest for log in logs.values())
    async with machine(tmp_path, guest, *drives) as (console, qemu):
        await console.ask("disk rate=500")
        status = await until(console, lambda s: s["disk"]["durable"] >= most + 50)
        await console.end()
        assert await ended(qemu) == 0
    for name, path in disks.items():
        after = disklog.check(path, name)
        assert after.proves(status["disks"][name]["durable"])
        assert len(after.boots) == 2
