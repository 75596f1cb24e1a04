"""The peer to compare with: `virsh migrate` between two libvirtd in a lab.

Each libvirtd runs in the namespaces of a lab's host and sees folders of the lab in place of
/var/lib/libvirt, /run/libvirt, /etc/libvirt and the like, so that nothing of the machine's own
libvirt is touched. Everything ends with the lab: processes, mounts and files. libvirt's own
defaults hold wherever a choice would change what is measured. Started inside a host by running
this file (`launch`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4
from xml.sax.saxutils import escape, quoteattr

from sterna.lab.hosts import Host
from sterna.lab.lab import Lab
from sterna.qemu.argv import TCG_ODD_BYTES
from sterna.units import KIB

PACKAGES = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients")
MAC = "52:54:00:ba:4e:02"
READY_S = 30.0
MOVE_S = 900.0
POLL_S = 0.05
# What libvirtd writes, and where it looks for it on a machine of its own.
FOLDERS = {
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "run": "/run/libvirt",
    "etc": "/etc/libvirt",
    "dbus": "/run/dbus",  # empty: machined and polkit of the machine are not for it
}
IMAGES = f"{FOLDERS['lib']}/images"
CONSOLE = f"{FOLDERS['lib']}/console"
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
# Made by Debian's libvirt-daemon-system, which would start a daemon of the machine's own: libvirtd
# does not start without that user, though it then runs QEMU as root, as Sterna does.
ACCOUNTS = {
    "passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
    "group": "libvirt-qemu:x:64055:\n",
}
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_MS_BIND = 4096
_MS_REC, _MS_PRIVATE = 16384, 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The machine: the lab's guest, with one disk or none, the same wherever it runs."""

    name: str
    memory: int  # bytes
    kernel: str
    initrd: str
    cmdline: str
    machine: str
    accel: str
    cpu: str  # QEMU's words
    binary: str
    bridge: str
    disk_format: str = "raw"
    disk_file: str = ""  # plain name; each host has its own folder of images at the same path

    def xml(self) -> str:
        """Under emulation RAM gets 8 KiB more, as Sterna's guests do (docs/adr/0008): libvirt rounds
        memory to whole MiB, so QEMU is given it by hand. So is the CPU model, in Sterna's words.
        """
        words = ["-cpu", self.cpu]
        if self.accel == "tcg":
            memory = self.memory + TCG_ODD_BYTES
            words += ["-object", f"memory-backend-memfd,id=ram,size={memory},share=on"]
            words += ["-machine", "memory-backend=ram", "-m", f"size={memory // KIB}K"]
        disk = (
            f"""<disk type='file' device='disk'>
      <driver name='qemu' type='{self.disk_format}' discard='unmap'/>
      <source file='{IMAGES}/{self.disk_file}'/>
      <target dev='vda' bus='virtio'/>
    </disk>"""
            if self.disk_file
            else ""
        )
        extra = "".join(f"<qemu:arg value={quoteattr(word)}/>" for word in words)
        return f"""\
<domain type='{"kvm" if self.accel == "kvm" else "qemu"}'
        xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name>
  <uuid>{uuid4()}</uuid>
  <memory unit='KiB'>{self.memory // KIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine={quoteattr(self.machine)}>hvm</type>
    <kernel>{escape(self.kernel)}</kernel>
    <initrd>{escape(self.initrd)}</initrd>
    <cmdline>{escape(self.cmdline)}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{escape(self.binary)}</emulator>
    {disk}
    <interface type='bridge'>
      <mac address='{MAC}'/>
      <source bridge='{self.bridge}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='unix'>
      <source mode='bind' path='{CONSOLE}'/>
      <target port='0'/>
    </serial>
    <controller type='usb' model='none'/>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline>{extra}</qemu:commandline>
</domain>
"""


class Libvirtd:
    """libvirtd on one host of a lab, and `virsh` for it."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.host = host
        self._lab = lab
        self._folder = host.folder / "libvirt"
        self._socket = self._folder / "run" / "libvirt-sock"
        self._log = self._folder / "libvirtd.out"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self._socket}"

    @property
    def images(self) -> Path:
        """Where its disks are, seen from outside."""
        return self._folder / "lib" / "images"

    @property
    def console(self) -> Path:
        """Socket of the guest's serial console, seen from outside."""
        return self._folder / "lib" / "console"

    def start(self) -> None:
        """Start it; `wait_ready` waits until it answers."""
        for name in FOLDERS:
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self.images.mkdir(exist_ok=True)
        (self._folder / "etc/qemu.conf").write_text(QEMU_CONF)
        (self._folder / "etc/libvirtd.conf").write_text(
            f'listen_tls = 0\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'host_uuid = "{uuid4()}"\nunix_sock_rw_perms = "0700"\n'
        )
        for name, line in ACCOUNTS.items():
            (self._folder / name).write_text(Path("/etc", name).read_text() + line)
        order = {"folder": str(self._folder), "hostname": self.host.name}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.host.command([sys.executable, __file__, json.dumps(order)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """It asks each QEMU what it can, which takes seconds under emulation."""
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while self._virsh("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"libvirtd does not start: {self._log.read_text()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it. Its QEMUs run on, until their lab is removed."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(READY_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def create(self, xml: str) -> None:
        """Run a guest that is forgotten when it ends."""
        file = self._folder / "domain.xml"
        file.write_text(xml)
        self._virsh("create", str(file))

    def suspend(self, name: str) -> None:
        self._virsh("suspend", name)

    def resume(self, name: str) -> None:
        self._virsh("resume", name)

    def destroy(self, name: str) -> None:
        self._virsh("destroy", name)

    def migrate(self, name: str, target: Libvirtd, *options: str) -> None:
        """Live, over the migration network, with `options` of virsh. All else is libvirt's choice."""
        address = target.host.migration_address
        uris = ("--migrateuri", f"tcp://{address}", "--listen-address", address)
        self._virsh("migrate", "--live", *options, *uris, name, target.uri)

    def abort(self, name: str) -> None:
        """End the migration that is under way, if it still can be."""
        self._virsh("domjobabort", name, check=False)

    def job(self, name: str) -> dict[str, int | str]:
        """Figures of the completed migration, as the target keeps them: QEMU's, in bytes and ms."""
        done = self._virsh("domjobinfo", name, "--completed", "--rawstats", check=False)
        if done.returncode:
            return {}
        pairs = (line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        return {key.strip(): value.strip() for key, value in pairs}

    def _virsh(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", self.uri, *words],
            capture_output=True,
            text=True,
            timeout=MOVE_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if check and done.returncode:
            raise RuntimeError(f"virsh {' '.join(words)}: {done.stderr.strip()}")
        return done


def require(say: Any = print) -> None:
    """Install libvirt if it is missing, and say so: only the benchmark needs it.

    Without Debian's libvirt-daemon-system, no daemon of the machine's own is started by that.
    """
    if (
        all(shutil.which(tool) for tool in ("libvirtd", "virsh"))
        or Path("/usr/sbin/libvirtd").exists()
    ):
        return
    say(f"installing Debian packages for the comparison: {' '.join(PACKAGES)}")
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "update"], check=False, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*apt, "install", "--yes", "--no-install-recommends", *PACKAGES],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


class Places:
    """The mount points, made where the machine has none, and removed with the block."""

    def __enter__(self) -> Self:
        self._made = [path for path in map(Path, FOLDERS.values()) if not path.exists()]
        for path in self._made:
            path.mkdir(parents=True)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for path in self._made:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                path.rmdir()


def launch(order: dict[str, Any]) -> None:
    """Become the libvirtd of `order`, in a mount namespace and with a hostname of its own.

    libvirt refuses to move a guest between hosts of one name.
    """
    folder = Path(order["folder"])
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS))
    _must(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    for name, path in FOLDERS.items():
        _must(libc.mount(str(folder / name).encode(), path.encode(), None, _MS_BIND, None))
    for name in ACCOUNTS:
        _must(
            libc.mount(str(folder / name).encode(), f"/etc/{name}".encode(), None, _MS_BIND, None)
        )
    name = order["hostname"].encode()
    _must(libc.sethostname(name, len(name)))
    program = shutil.which("libvirtd") or "/usr/sbin/libvirtd"
    config = str(folder / "etc/libvirtd.conf")
    os.execv(program, [program, "--config", config, "--pid-file", str(folder / "run/pid")])


def _must(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    launch(json.loads(sys.argv[1]))
