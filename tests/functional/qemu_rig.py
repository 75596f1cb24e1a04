"""A real QEMU for a test: started from a variant by our own driver, and gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from machines import Variant, chains, firmware, media
from sterna.model.vm import Firmware
from sterna.qemu import process
from sterna.qemu.argv import RunPaths
from sterna.qemu.commands import Monitor
from sterna.qemu.process import Process
from sterna.qemu.session import Session

BINARY = "qemu-system-x86_64"
DISK_BYTES = 64 << 20
WAIT_S = 60.0  # a busy machine, emulating
_TUNSETIFF, _TAP, _NO_PI, _VNET_HDR = 0x400454CA, 0x2, 0x1000, 0x4000
SOURCE = {"events": True, "return-path": True, "pause-before-switchover": True}
TARGET = {"events": True, "return-path": True, "late-block-activate": True}


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))

    return run


@dataclass(frozen=True)
class Machine:
    """One QEMU with its sessions."""

    process: Process
    qmp: Monitor
    paths: RunPaths

    @property
    def session(self) -> Session:
        return self.qmp.session

    async def console_says(self, words: str) -> None:
        """Returns when the guest has written `words` on its serial console."""

        async def said() -> bool:
            log = self.paths.console_log
            return log.exists() and words in log.read_text(errors="replace")

        await until(said)

    async def has_status(self, status: str) -> None:
        """Returns when its migration has come to `status`."""

        async def come() -> bool:
            return (await self.qmp.query_migrate()).status == status

        await until(come)

    def fill_memory(self, size: int) -> None:
        """Write random bytes into the guest's memory past its first 64 MiB, without a guest."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        for link in folder.iterdir():
            if "memory-backend-memfd" in str(link.readlink()):
                with link.open("r+b") as memory:
                    memory.seek(64 << 20)
                    memory.write(os.urandom(size))


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = WAIT_S) -> None:
    """Ask again and again. For what no event tells."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110 - the world outside sets no event
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def taps(count: int) -> Iterator[list[int]]:
    """Open taps; each disappears when its last file descriptor is closed."""
    fds = []
    try:
        for _ in range(count):
            fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
            name = b"stt%d-%%d" % (os.getpid() % 100000)  # the kernel counts
            fcntl.ioctl(fds[-1], _TUNSETIFF, struct.pack("16sH", name, _TAP | _NO_PI | _VNET_HDR))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def prepare(variant: Variant, folder: Path, shared: Path | None = None) -> dict[str, Any]:
    """The files of a machine in `folder`, its disks in `shared`; what `build` must be told."""
    own = folder / variant.folder
    own.mkdir(parents=True, exist_ok=True)
    for medium in media(variant.spec, own).values():
        medium.path.touch()
        os.truncate(medium.path, DISK_BYTES)
    layers = chains(variant.spec, shared or own)
    for disk in variant.spec.disks:
        (layer,) = layers[disk.name]
        if not layer.path.exists():
            command = ["qemu-img", "create", "-q", "-f", disk.format, str(layer.path)]
            subprocess.run([*command, str(DISK_BYTES)], check=True)
    if variant.spec.firmware is not Firmware.UEFI:
        return {"chains": layers}
    files = firmware(own)
    files.variables.write_bytes(files.template.read_bytes())
    return {"chains": layers, "firmware": files}


@contextlib.asynccontextmanager
async def machine(
    variant: Variant,
    folder: Path,
    *,
    shared: Path | None = None,
    binary: str = BINARY,
    arguments: tuple[str, ...] = (),
) -> AsyncIterator[Machine]:
    """A QEMU whose vCPUs stand still; killed at the end if it still runs."""
    options = prepare(variant, folder, shared)
    paths = RunPaths(folder / variant.folder)
    with taps(len(variant.spec.nics)) as fds:
        names = [nic.name for nic in variant.spec.nics]
        command = variant.build(
            folder,
            binary=binary,
            arguments=arguments,
            tap_fds=dict(zip(names, fds, strict=True)),
            **options,
        )
        started = await process.spawn(command, log=paths.log, fds=fds)
    try:
        try:
            session = await Session.connect(
                variant.spec.name, paths.control, paths.oob, is_alive=lambda: started.is_alive
            )
        except Exception as error:
            raise AssertionError(f"QEMU said: {started.log_tail()}") from error
        try:
            yield Machine(started, Monitor(session), paths)
        finally:
            await session.close()
    finally:
        started.kill()
        await started.wait()


async def to_pre_switchover(
    source: Machine, target: Machine, bandwidth: int = 16 << 30, downtime_ms: int = 300
) -> None:
    """Send the source's memory to the target, until the guest is stopped for the rest."""
    await source.qmp.migrate_set_capabilities(SOURCE)
    await target.qmp.migrate_set_capabilities(TARGET)
    await source.qmp.migrate_set_parameters(
        **{"max-bandwidth": bandwidth, "downtime-limit": downtime_ms}
    )
    await target.qmp.migrate_incoming("tcp:127.0.0.1:0")
    port = (await target.qmp.query_migrate()).socket_port
    assert port
    with source.session.listen("MIGRATION") as events:
        await source.qmp.migrate(f"tcp:127.0.0.1:{port}")
        await until_status(events, "pre-switchover")


async def until_status(events: Any, wanted: str) -> None:
    """Follow MIGRATION events to `wanted`; another end is a failure."""
    while (status := (await events.get(WAIT_S))["data"]["status"]) != wanted:
        assert status not in ("completed", "failed", "cancelled"), status


async def move(source: Machine, target: Machine) -> None:
    """All of a move that QEMU does; the guest runs on the target afterwards."""
    await to_pre_switchover(source, target)
    with source.session.listen("MIGRATION") as events:
        await source.qmp.migrate_continue("pre-switchover")
        await until_status(events, "completed")
    await target.has_status("completed")
    await target.qmp.cont()
