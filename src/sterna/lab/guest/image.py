"""Builds the lab guest's kernel and initramfs from Debian packages and our C program, into a cache.

Promises: the same inputs give the same cache entry, found again without any work; builders at the
same time do not disturb each other (each builds in a folder of its own, and the first to finish
wins by renaming); a failure leaves nothing in the cache and says what is missing. Never installs a
package, and never touches the running system's kernel.
"""

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sterna.lab.guest import cpio, modules, wire
from sterna.lab.guest.debian import GuestBuildError, Packages, need, run

__all__ = ["GuestBuildError", "GuestImage", "build", "cmdline"]

DEFAULT_CACHE = Path("/var/cache/sterna")
_KERNEL = "linux-image-cloud-amd64"
_REQUIRED = ("virtio_pci", "virtio_blk", "virtio_net", "button", "evdev")
_OPTIONAL = ("virtio_rng", "virtio_balloon", "virtio_console")
_SOURCES = Path(__file__).parent
_CC_FLAGS = ("-O2", "-static", "-pthread", "-s", "-Wall", "-Wextra")

# Measured under emulation: without the crypto self-tests the guest is up 0.6 s sooner, without
# patching out lock prefixes 0.3 s. The clock options keep a guest that was paused, or whose host is
# busy, from distrusting its clock. `panic=1` turns a crash into a new boot id, which the client
# sees. None changes what a migration has to carry.
_CMDLINE = (
    "console=ttyS0 quiet panic=1 cryptomgr.notests noreplace-smp no_timer_check tsc=reliable "
    "random.trust_cpu=on"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """What QEMU boots: `-kernel kernel -initrd initrd -append cmdline(...)`."""

    kernel: Path
    initrd: Path
    build_id: str


def cmdline(
    *,
    ip: str | None = None,
    client: str | None = None,
    mem: str | None = None,
    disk: str | None = None,
) -> str:
    """The kernel command line that boots fastest, with the workload that the guest starts with.

    `ip` is "A.B.C.D/PLEN" for eth0, `client` "A.B.C.D:PORT" for the beats, `mem`
    "SIZE_MB:RATE_MB:PATTERN[:FILL]", `disk` "BLOCKS_PER_SECOND[:SPAN_MB[:DISKS[:BURST]]]".
    """
    options = {"ip": ip, "client": client, "mem": mem, "disk": disk}
    return " ".join(
        [_CMDLINE, *(f"sterna.{key}={value}" for key, value in options.items() if value)]
    )


def _inputs() -> dict[str, bytes]:
    texts = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]"))}
    texts["wire.h"] = wire.c_header().encode()
    # The recipe itself is an input, and so is the Debian release that it is cooked from.
    for name in ("image.py", "cpio.py", "modules.py"):
        texts[name] = (_SOURCES / name).read_bytes()
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    texts["release"] = f"{release.get('ID')} {release.get('VERSION_ID')}".encode()
    return texts


def _build_id(inputs: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(inputs.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:16]


def _compile(inputs: dict[str, bytes], folder: Path) -> bytes:
    compiler = need("gcc", "gcc libc6-dev")
    folder.mkdir()
    for name, data in inputs.items():
        if name.endswith((".c", ".h")):
            (folder / name).write_bytes(data)
    sources = [str(path) for path in sorted(folder.glob("*.c"))]
    try:
        run([compiler, *_CC_FLAGS, "-o", str(folder / "agent"), *sources])
    except GuestBuildError as error:
        if "-lc" in str(error) or "stdio.h" in str(error):
            raise GuestBuildError("the C library is missing (apt-get install libc6-dev)") from error
        raise
    return (folder / "agent").read_bytes()


def _busybox(packages: Packages) -> bytes:
    """Debian's static busybox: the installed one if there is one, else the package's."""
    for installed in (Path("/usr/bin/busybox"), Path("/bin/busybox")):
        if installed.is_file() and b"/lib64/ld-linux" not in installed.read_bytes():
            return installed.read_bytes()
    root = packages.unpacked("busybox-static")
    for place in ("usr/bin/busybox", "bin/busybox"):
        if (root / place).is_file():
            return (root / place).read_bytes()
    raise GuestBuildError("the package busybox-static has no busybox")


def _initramfs(agent: bytes, busybox: bytes, loaded: list[tuple[str, bytes]]) -> bytes:
    order = "".join(f"{name}.ko\n" for name, _ in loaded).encode()
    entries = [
        cpio.folder("dev"),
        cpio.device("dev/console", 5, 1),
        cpio.device("dev/null", 1, 3),
        *(cpio.folder(name) for name in ("proc", "sys", "tmp", "bin", "modules")),
        cpio.file("modules/order", order),
        *(cpio.file(f"modules/{name}.ko", data) for name, data in loaded),
        cpio.file("bin/busybox", busybox, executable=True),
        cpio.link("bin/sh", "busybox"),
        cpio.file("init", agent, executable=True),
    ]
    return cpio.archive(entries)


def _make(inputs: dict[str, bytes], folder: Path, say: Callable[[str], None]) -> None:
    """Fills `folder` with `kernel` and `initrd`, and nothing else."""
    scratch = folder / "scratch"
    scratch.mkdir()
    say("compiling the guest's agent")
    agent = _compile(inputs, scratch / "agent")
    packages = Packages(scratch / "packages", say)
    root = packages.unpacked(packages.concrete(_KERNEL, "linux-image-"))
    kernels = sorted(root.glob("boot/vmlinuz-*"))
    if not kernels:
        raise GuestBuildError(f"the package behind {_KERNEL} has no kernel")
    say("packing the initramfs")
    shutil.copyfile(kernels[0], folder / "kernel")
    initramfs = _initramfs(agent, _busybox(packages), modules.needed(root, _REQUIRED, _OPTIONAL))
    (folder / "initrd").write_bytes(initramfs)
    shutil.rmtree(scratch)


def build(cache: Path | None = None, *, say: Callable[[str], None] = lambda _: None) -> GuestImage:
    """The guest's image, built if the cache does not have it yet (seconds, once).

    `cache` defaults to $STERNA_CACHE, else /var/cache/sterna. Raises GuestBuildError.
    """
    inputs = _inputs()
    build_id = _build_id(inputs)
    guests = (cache or Path(os.environ.get("STERNA_CACHE") or DEFAULT_CACHE)) / "guest"
    place = guests / build_id
    image = GuestImage(kernel=place / "kernel", initrd=place / "initrd", build_id=build_id)
    if image.initrd.exists():
        return image
    guests.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=f".{build_id}-", dir=guests))
    try:
        own.chmod(0o755)
        _make(inputs, own, say)
        try:
            own.rename(place)
        except OSError:
            if not image.initrd.exists():  # somebody else's is as good as ours
                raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
    say(f"the guest is ready in {place}")
    return image
