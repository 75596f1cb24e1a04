"""Runs tests of ours in a QEMU guest with Debian's cloud kernel and this machine's own Python.

The guest gets a disk with a copy of what Python, pytest and iproute2 need, and no network. It
prints what pytest prints on its console and ends; its memory is its only writable place.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import sterna
from sterna.lab.guest import cpio, modules
from sterna.lab.guest.debian import Packages

IS_INSIDE = bool(os.environ.get("STERNA_TESTS_IN_GUEST"))
MODULES = ("virtio_pci", "virtio_blk", "bridge", "tun", "veth", "8021q")
# What pytest and our own code import; compiled parts come with the packages.
PACKAGES = [
    "pytest",
    "_pytest",
    "py.py",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions.py",
    "typing_inspection",
    "pytest_timeout.py",
]
NOT_NEEDED = shutil.ignore_patterns(
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "config-*",
    "*.a",
)
BOOT_AND_TEST_S = (
    900  # 300 s here, on two emulated cores of a machine that was five times overbooked
)

INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
while read module; do /bin/busybox insmod /modules/$module; done < /modules/order
/bin/busybox mount -t ext4 -o ro /dev/vda /root
/bin/busybox mount -t devtmpfs none /root/dev
exec /bin/busybox switch_root /root /bin/busybox sh /start
"""
START = """
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mkdir -p /dev/net /run/netns
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
cd /tmp
export PYTHONPATH=/tests:/packages PYTHONDONTWRITEBYTECODE=1 STERNA_TESTS_IN_GUEST=1 HOME=/tmp
{python} -m pytest -c /dev/null --rootdir=/tests --noconftest -p no:cacheprovider -W ignore \
    --color=no --no-header -v -ra -p pytest_timeout --timeout=60 {files}
echo "pytest ended with $?"
poweroff -f
"""


def run_tests(scratch: Path, files: list[Path]) -> tuple[int, int, str]:
    """(passed, skipped, all that was printed). Raises AssertionError if a test failed."""
    disk, kernel, initrd = scratch / "disk", scratch / "kernel", scratch / "initrd"
    root = Packages(scratch / "packages", print)
    package = root.unpacked(root.concrete("linux-image-cloud-amd64", "linux-image-"))
    shutil.copyfile(next(package.glob("boot/vmlinuz-*")), kernel)
    initrd.write_bytes(_initramfs(package))
    _make_disk(scratch / "tree", disk, files)
    try:
        words = _boot(kernel, initrd, disk)
    finally:
        disk.unlink()
    assert "pytest ended with 0" in words, words
    counted = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|skipped)", words)}
    return counted.get("passed", 0), counted.get("skipped", 0), words


def _boot(kernel: Path, initrd: Path, disk: Path) -> str:
    console = disk.with_name("console")
    options = "-accel tcg -machine q35 -cpu max -smp 2 -m 512 -nodefaults -no-user-config"
    command = [
        *("qemu-system-x86_64", *options.split(), "-no-reboot", "-display", "none"),
        *("-serial", f"file:{console}", "-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check"),
        *("-blockdev", f"driver=file,node-name=disk,filename={disk},read-only=on"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=BOOT_AND_TEST_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(console.read_text(errors="replace")) from error
    return console.read_text(errors="replace")


def _initramfs(package: Path) -> bytes:
    loaded = modules.needed(package, MODULES)
    order = "".join(f"{name}.ko\n" for name, _ in loaded).encode()
    entries = [cpio.folder(name) for name in ("dev", "root", "bin", "modules")]
    entries += [
        cpio.device("dev/console", 5, 1),
        cpio.file("bin/busybox", Path("/bin/busybox").read_bytes(), executable=True),
        cpio.file("init", INIT.encode(), executable=True),
        cpio.file("modules/order", order),
    ]
    entries += [cpio.file(f"modules/{name}.ko", data) for name, data in loaded]
    return cpio.archive(entries)


def _make_disk(tree: Path, disk: Path, files: list[Path]) -> None:
    for name in ("bin", "dev", "proc", "sys", "tmp", "run", "etc", "packages", "tests"):
        (tree / name).mkdir(parents=True)
    tools = ["ip", "bridge", "busybox"]
    programs = [Path(shutil.which(tool) or tool).resolve() for tool in tools]
    python = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix}))
    shutil.copytree(standard, tree / standard.relative_to("/"), ignore=NOT_NEEDED, symlinks=True)
    site = Path(sysconfig.get_path("purelib"))
    copied = [*programs, python, *standard.glob("lib-dynload/*.so")]
    for path in {*copied, *_libraries([*copied, *site.glob("pydantic_core/*.so")])}:
        _copy(path, tree)
    (tree / "bin/busybox").write_bytes(programs[-1].read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for tool in ("sh", "mount", "mkdir", "mknod", "poweroff"):
        (tree / "bin" / tool).symlink_to("busybox")
    for tool, program in zip(tools[:2], programs[:2], strict=True):
        (tree / "bin" / tool).symlink_to(program)
    _copy_packages(tree / "packages")
    names = [*files, *Path(__file__).parent.glob("[!t]*.py")]
    for file in names:
        shutil.copyfile(file, tree / "tests" / file.name)
    tests = " ".join(f"/tests/{file.name}" for file in files)
    (tree / "start").write_text(START.format(python=python, files=tests))
    with disk.open("wb") as file:
        file.truncate(600 << 20)
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(disk)]
    subprocess.run(command, check=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/sbin"})
    shutil.rmtree(tree)


def _copy_packages(target: Path) -> None:
    site = Path(sysconfig.get_path("purelib"))
    for name in PACKAGES:
        source = site / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copyfile(source, target / name)
    shutil.copytree(Path(sterna.__file__).parent, target / "sterna")


def _libraries(programs: Iterable[Path]) -> set[Path]:
    found = set()
    for program in programs:
        # A static program has none, and ldd then ends with 1.
        done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", done.stdout)}
    return found


def _copy(path: Path, tree: Path) -> None:
    target = tree / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(path, target)
