"""TPMs of VMs: a swtpm process beside each QEMU, and the state that it keeps.

Promises: the state is encrypted where it lies and where it travels, by keys that are derived from
the VM's own, which only guardians open; no key is on a command line or in a file. A swtpm ends with its QEMU,
whoever ends that, and outlives the daemon as QEMU does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from sterna.errors import GuardianMissing, QEMUMissing, TPMFailed, TPMMissing
from sterna.model.vm import VMRecord, VMSpec
from sterna.qemu import process
from sterna.qemu.argv import RunPaths
from sterna.qemu.process import Process
from sterna.security import guardian
from sterna.security.guardian import Guardian

BINARY = "swtpm"
STATE = "tpm2-00.permall"  # swtpm's own name of it
END_S = 5.0  # for a process that was killed


@dataclass(frozen=True, slots=True)
class TPMs:
    """Of one host. `root`: a folder for each VM; `own`: what opens the VMs' keys here."""

    host: str
    root: Path
    own: Guardian

    @property
    def is_installed(self) -> bool:
        """Whether this host has swtpm."""
        return shutil.which(BINARY) is not None

    def key(self, record: VMRecord) -> bytes:
        """Of the VM. Raises GuardianMissing: this host may not open it."""
        sealed = record.protector.get(self.own.public, "")
        spec = record.spec
        try:
            return self.own.open(sealed, spec.id)
        except ValueError as error:
            raise GuardianMissing(vm=spec.name, host=self.host) from error

    def protector(self, spec: VMSpec) -> dict[str, str]:
        """Of a new VM: a new key, for this host alone. Raises TPMMissing."""
        if not spec.tpm:
            return {}
        if not self.is_installed:
            raise TPMMissing(vm=spec.name, host=self.host)
        return {self.own.public: guardian.seal(guardian.new_key(), self.own.public, spec.id)}

    def require(self, record: VMRecord) -> None:
        """Raises TPMMissing, GuardianMissing: its TPM cannot be had here."""
        if not self.is_installed:
            raise TPMMissing(vm=record.spec.name, host=self.host)
        self.key(record)

    async def start(self, record: VMRecord, paths: RunPaths) -> Process:
        """A swtpm that waits for QEMU at `paths.tpm`. Raises TPMMissing, GuardianMissing, TPMFailed."""
        self.require(record)
        key = self.key(record)
        folder = self.folder(record.spec.id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(_end_stray, folder)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(paths.tpm))
            listening.listen(1)
            fds = [listening.fileno(), *(_pipe(guardian.derive(key, use)) for use in USES)]
            form = "format=binary,mode=aes-256-cbc"
            try:
                started = await process.spawn(
                    [
                        *(BINARY, "socket", "--tpm2", "--terminate"),
                        *("--tpmstate", _kept_in(folder)),
                        *("--ctrl", f"type=unixio,fd={fds[0]}"),
                        *("--pid", f"file={paths.tpm_pid}"),
                        *("--key", f"fd={fds[1]},{form}"),
                        *("--migration-key", f"fd={fds[2]},{form}"),
                    ],
                    log=paths.tpm_log,
                    fds=fds,
                )
            except QEMUMissing as error:
                raise TPMMissing(vm=record.spec.name, host=self.host) from error
            finally:
                for fd in fds[1:]:
                    os.close(fd)
        await asyncio.sleep(0)
        if not started.is_alive:
            raise TPMFailed(vm=record.spec.name, host=self.host, reason=started.log_tail(1))
        return started

    @staticmethod
    def is_alive(paths: RunPaths) -> bool:
        """Whether the swtpm of a VM that runs is there still."""
        try:
            pid = int(paths.tpm_pid.read_text())
            return Path(f"/proc/{pid}/comm").read_text().strip() == BINARY
        except (OSError, ValueError):
            return False

    def folder(self, vm_id: str) -> Path:
        """Where the state of that VM's TPM is."""
        return self.root / vm_id

    def state(self, vm_id: str) -> bytes:
        """Of a VM that is off, as it lies there: encrypted. Empty: it was never started."""
        try:
            return (self.folder(vm_id) / STATE).read_bytes()
        except FileNotFoundError:
            return b""

    def put(self, vm_id: str, state: bytes) -> None:
        """It is as another host has had it; nothing else is there."""
        self.remove(vm_id)
        folder = self.folder(vm_id)
        folder.mkdir(mode=0o700, parents=True)
        file = folder / STATE
        file.touch(mode=0o600)
        file.write_bytes(state)

    def remove(self, vm_id: str) -> None:
        """No VM of that id has a TPM here any more."""
        _end_stray(self.folder(vm_id))
        shutil.rmtree(self.folder(vm_id), ignore_errors=True)


USES = ("tpm at rest", "tpm on the wire")


def _end_stray(folder: Path) -> None:
    """End a swtpm that waits for a QEMU which never came: its daemon died in between.

    Only for a VM that has no QEMU. It would keep the lock of the state for ever.
    """
    wanted = _kept_in(folder).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended
            pidfd = os.pidfd_open(int(entry.name))
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] == BINARY.encode() and wanted in words:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], END_S)
            finally:
                os.close(pidfd)


def _kept_in(folder: Path) -> str:
    return f"dir={folder},mode=0600"


def _pipe(data: bytes) -> int:
    """To be read once."""
    reading, writing = os.pipe()
    os.write(writing, data)  # far less than a pipe holds
    os.close(writing)
    return reading
