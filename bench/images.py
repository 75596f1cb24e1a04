"""Disk images to move, what they take, what went over the wire, and a copy by qemu-img alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from sterna.lab.hosts import Host
from sterna.units import MIB

LOG = 512 * MIB  # at the start of each disk, without data: room for the guest's log of blocks
_EXTENTS = 128  # the data lies in so many pieces, evenly spread, as in a disk that was used
_CHUNK = 8 * MIB
_PORT = 10899
_READY_S = 10.0
_NO_DISK = {0x01021994, 0x858458F6}  # tmpfs, ramfs: magic numbers of statfs(2)


def require_disk(folder: Path, wanted: int) -> None:
    """SystemExit unless `wanted` bytes fit below `folder`, and not into memory."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    kind = subprocess.run(
        ["stat", "--file-system", "--format", "%t", place],
        capture_output=True,
        text=True,
        check=True,
    )
    other = "set STERNA_LAB_ROOT to a folder that is"
    if int(kind.stdout, 16) in _NO_DISK:
        raise SystemExit(f"{place} is memory, not a disk: {other} on one")
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise SystemExit(
            f"{place} has {free >> 20} MiB free, {wanted >> 20} are needed: {other} larger"
        )


def make(path: Path, *, size: int, allocated: int, image_format: str) -> None:
    """An image of `size` bytes, `allocated` of which are random data, behind the room for the log."""
    raw = path.with_suffix(".scratch")
    extent = allocated // _EXTENTS
    step = (size - LOG) // _EXTENTS
    with raw.open("wb") as file:
        file.truncate(size)
        for index in range(_EXTENTS):
            file.seek(LOG + index * step)
            for done in range(0, extent, _CHUNK):
                file.write(os.urandom(min(_CHUNK, extent - done)))
    if image_format == "raw":
        raw.rename(path)
        return
    try:
        _run(["qemu-img", "convert", "-f", "raw", "-O", image_format, raw, path])
    finally:
        raw.unlink()


def copy(source: Path, target: Path) -> None:
    """Holes stay holes."""
    _run(["cp", "--sparse=always", source, target])


def make_empty(path: Path, *, size: int, image_format: str) -> None:
    path.unlink(missing_ok=True)
    _run(["qemu-img", "create", "-q", "-f", image_format, path, str(size)])


def allocation(path: Path) -> int:
    """Bytes that it takes on the disk."""
    return path.stat().st_blocks * 512


def forget(paths: Iterable[Path]) -> None:
    """All that was written is on the disk, and none of these files is in the page cache."""
    os.sync()
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def on_wire(host: Host) -> int:
    """Bytes that this host has sent and received so far on the networks between hosts."""
    counters = [
        f"/sys/class/net/{device}/statistics/{way}_bytes"
        for device in ("mig0", "mgmt0")
        for way in ("rx", "tx")
    ]
    return sum(int(line) for line in _run(host.command(["cat", *counters])).split())


def convert(
    source: Host, target: Host, image: Path, *, size: int, image_format: str
) -> dict[str, float]:
    """Copy `image` by `qemu-img convert` from one host to a `qemu-nbd` on the other, which is told
    that its disk is empty; durably. Nobody may write to it meanwhile.
    """
    there = target.folder / "converted"
    make_empty(there, size=size, image_format=image_format)
    forget([image])
    address = target.migration_address
    listen = ["--bind", address, "--port", str(_PORT), "--export-name", "disk", str(there)]
    server = subprocess.Popen(
        target.command(
            ["qemu-nbd", "--persistent", "--discard", "unmap", "--format", image_format, *listen]
        ),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"nbd://{address}:{_PORT}/disk"
        _wait_ready(source, url)
        wire, began = on_wire(source), time.monotonic()
        words = ["qemu-img", "convert", "-n", "--target-is-zero", "-t", "writeback"]
        _run(source.command([*words, "-f", image_format, "-O", "raw", str(image), url]))
        took = time.monotonic() - began
        return {
            "total_s": round(took, 3),
            "bytes_wire": on_wire(source) - wire,
            "allocated": allocation(image),
            "target_allocated": allocation(there),
        }
    finally:
        server.terminate()
        server.wait(_READY_S)
        there.unlink()


def _wait_ready(host: Host, url: str) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        found = subprocess.run(
            host.command(["qemu-img", "info", url]), capture_output=True, check=False
        )
        if found.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"qemu-nbd does not start: {found.stderr.decode()}")
        time.sleep(0.1)


def _run(argv: Sequence[str | Path]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
    return done.stdout
