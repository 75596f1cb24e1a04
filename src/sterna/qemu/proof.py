"""The proof that an accelerator runs guests: a kernel booted in the machine that VMs get.

Promises: a device node proves nothing (there are /dev/kvm that open and run no stock kernel), so
the kernel must come to the end of its own start, where it misses its root file system. Nothing of
the guest stays, whatever happens.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Literal

from sterna.errors import QEMULost, QMPError, QMPTimeout
from sterna.model.vm import DirectBoot, VMSpec
from sterna.qemu import argv, process
from sterna.qemu.argv import RunPaths
from sterna.qemu.commands import Monitor
from sterna.qemu.session import Session

BOOT_DIR = Path("/boot")
# A kernel takes 1 to 2 s under KVM to the point where it misses its root file system.
PROOF_S = 10.0
END_S = 5.0
MARKER = "Unable to mount root fs"
CMDLINE = "console=ttyS0 panic=-1"  # the panic reboots at once, and -no-reboot then ends QEMU
MEMORY = 256 << 20  # enough for any distribution's kernel without an initrd


def newest_kernel(directory: Path = BOOT_DIR) -> Path | None:
    """The kernel of the highest version in `directory`."""
    kernels = [path for path in directory.glob("vmlinuz-*") if path.is_file()]
    return max(kernels, key=_version, default=None)


def _version(path: Path) -> list[tuple[int, str]]:
    return [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", path.name)]


async def boots(
    binary: str,
    accel: Literal["kvm", "tcg"],
    kernel: Path,
    arguments: tuple[str, ...] = (),
    timeout_s: float = PROOF_S,
) -> tuple[bool, str]:
    """Boot `kernel` in the machine that VMs get, until it misses its root file system."""
    spec = VMSpec(
        name="probe",
        memory=MEMORY,
        graphics=False,
        boot=DirectBoot(kernel=str(kernel), cmdline=CMDLINE),
    )
    with tempfile.TemporaryDirectory(prefix="sterna-") as directory:
        paths = RunPaths(Path(directory))
        command = argv.build(
            spec,
            paths=paths,
            binary=binary,
            accel=accel,
            tap_fds={},
            chains={},
            arguments=(*arguments, "-no-reboot"),
        )
        failure = await _run(command, paths, timeout_s)
        console = _read(paths.console_log)
        if MARKER in console:
            return True, f"a guest booted {kernel.name} under {accel.upper()}"
        words = (failure, _last_line(_read(paths.log)), _last_line(console))
        return False, (
            f"a guest that should boot {kernel.name} under {accel.upper()} did not: "
            + "; ".join(word for word in words if word)
        )


async def _run(command: list[str], paths: RunPaths, timeout_s: float) -> str:
    """Run a QEMU that should end by itself; what went wrong, if anything did."""
    started = await process.spawn(command, log=paths.log)
    try:
        async with asyncio.timeout(timeout_s):
            session = await Session.connect(
                "probe", paths.control, paths.oob, timeout_s, lambda: started.is_alive
            )
            try:
                await Monitor(session).cont()
                status = await started.wait()
            finally:
                await session.close()
    except TimeoutError:
        return f"it was not through after {timeout_s:g} s"
    except (QEMULost, QMPTimeout, QMPError) as error:
        return "QEMU ended" if isinstance(error, QEMULost) else error.message
    finally:
        started.kill()
        async with asyncio.timeout(END_S):
            await started.wait()
    return f"QEMU ended with status {status}" if status else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
