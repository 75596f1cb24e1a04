"""Disk images, by `qemu-img` as a process.

Promises: a file appears under its name only when it is whole and on the disk; nothing stays of one
that failed or was cancelled; an existing file is never overwritten. Images that refer to other
files are refused: their owner could read any file of the host through them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sterna.errors import ImageFailed, ImageRefused, QEMUMissing
from sterna.model.disk import Image
from sterna.units import format_size

BINARY = "qemu-img"
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux
# qemu-img 7.2 reads differencing VHD and VDI images as if they had no parent, and reports success.
READABLE = frozenset({"qcow2", "raw"})

Format = Literal["qcow2", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """Sizes in bytes."""

    format: str
    size: int  # that a guest sees
    allocated: int  # on the host's disk
    backing: str = ""  # the file that it is a difference to, as its header names it
    backing_format: str = ""  # empty: its header does not say
    data_file: str = ""  # the file that holds its data
    is_marked_corrupt: bool = False  # QEMU found damage while it used it
    bitmaps: tuple[str, ...] = ()  # dirty bitmaps in it, as it was last opened
    snapshots: tuple[str, ...] = ()  # kept within the image, by qemu-img or another program


async def info(path: Path, image_format: Format | None = None) -> ImageInfo:
    """What `path` is; it may be in use. What it rests on is not opened.

    Without a format that is guessed. Raises ImageFailed, QEMUMissing.
    """
    kind = ("-f", image_format) if image_format else ()
    text = await _run("read", path, "info", "--output=json", "--force-share", *kind, _name(path))
    answer = json.loads(text)
    specific = answer.get("format-specific", {}).get("data", {})
    return ImageInfo(
        format=str(answer["format"]),
        size=int(answer["virtual-size"]),
        allocated=int(answer.get("actual-size", 0)),
        backing=str(answer.get("backing-filename", "")),
        backing_format=str(answer.get("backing-filename-format", "")),
        data_file=str(specific.get("data-file", "")),
        is_marked_corrupt=bool(specific.get("corrupt", False)),
        bitmaps=tuple(str(one["name"]) for one in specific.get("bitmaps", ())),
        snapshots=tuple(str(one["name"] or one["id"]) for one in answer.get("snapshots", ())),
    )


async def damage(path: Path) -> tuple[int, int]:
    """Errors in the qcow2 image at `path`, and clusters that it holds for nothing.

    Nobody may write to it. What it rests on must be there. Raises ImageFailed, QEMUMissing.
    """
    kind = ("--output=json", "--force-share", "-f", "qcow2")
    found = json.loads(await _run("check", path, "check", *kind, _name(path), good=(0, 2, 3)))
    return int(found.get("corruptions", 0)), int(found.get("leaks", 0))


async def size_of(path: Path, image_format: Format) -> int:
    """Bytes that a guest sees. The format is not guessed: a guest could have written another's header.

    It may be in use. Raises ImageFailed, QEMUMissing.
    """
    kind = ("--output=json", "--force-share", "-f", image_format)
    return int(json.loads(await _run("read", path, "info", *kind, _name(path)))["virtual-size"])


def is_in_use(path: Path) -> bool:
    """Whether a QEMU, qemu-img or qemu-storage-daemon has the image open, by the locks they take.

    They lock one byte for each permission that they use (from 100 on) or deny to others (from 200
    on): QEMU's block/file-posix.c, the same since 2.10. Raises OSError.
    """
    return _is_locked(path, (100, 64), (200, 64))


def is_written(path: Path) -> bool:
    """Whether one of them may write to the image: as `is_in_use`, of one permission. Raises OSError."""
    return _is_locked(path, (101, 1))


def _is_locked(path: Path, *ranges: tuple[int, int]) -> bool:
    with path.open("rb") as file:
        for start, length in ranges:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
            if struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK:
                return True
    return False


async def fill(source: Path, target: Path, formats: tuple[Format, Format], speed: int = 0) -> None:
    """Make `target`, a file that is the caller's already, a copy that stands alone. On the disk then.

    All that `source` rests on becomes a part of it. `speed` in bytes/s, 0: no limit. Raises
    ImageFailed, QEMUMissing; then what `target` holds is of no use.
    """
    kinds = ("-f", formats[0], "-O", formats[1], *(("-r", str(speed)) if speed else ()))
    await _run("copy", source, "convert", "-q", *kinds, _name(source), _name(target))
    await asyncio.to_thread(_sync, target)
    await asyncio.to_thread(_sync, target.parent)


async def compare(one: Path, other: Path, formats: tuple[Format, Format]) -> bool:
    """Whether a guest would see the same in both. Raises ImageFailed, QEMUMissing."""
    kinds = ("-f", formats[0], "-F", formats[1])
    try:
        await _run("compare", other, "compare", "-q", *kinds, _name(one), _name(other))
    except ImageFailed as error:
        if error.facts.get("status") == 1:
            return False
        raise
    return True


async def create(path: Path, image_format: Format, size: int, backing: Image | None = None) -> None:
    """A new, empty, thin image; on `backing`, a file beside it, it shows that one's content.

    Raises ImageFailed, QEMUMissing; then there is no such file.
    """
    below = () if backing is None else ("-b", backing.volume, "-F", backing.format)
    async with _new(path, "create") as part:
        kind = ("-f", image_format, *below)
        await _run("create", path, "create", "-q", *kind, _name(part), str(size))


async def convert(source: Path, target: Path, image_format: Format, size: int | None) -> None:
    """A copy of `source` that stands alone, grown to `size` if given.

    Raises ImageRefused, ImageFailed, QEMUMissing; then there is no `target`.
    """
    found = await info(source)
    _check(source, found, size)
    async with _new(target, "make") as part:
        formats = ("-f", found.format, "-O", image_format)
        await _run("copy", source, "convert", "-q", *formats, _name(source), _name(part))
        if size is not None and size > found.size:
            await _run("grow", target, "resize", "-q", "-f", image_format, _name(part), str(size))


async def commit(path: Path) -> None:
    """Write all that the qcow2 image at `path` holds down into the image that it rests on.

    Nobody may have either open. Cancelled or failed in the middle: what `path` shows is unchanged,
    what the image below shows is not. Raises ImageFailed, QEMUMissing.
    """
    await _run("merge", path, "commit", "-q", "-d", "-f", "qcow2", _name(path))


async def put_on(path: Path, backing: Image) -> None:
    """Let the qcow2 image at `path` name `backing`, which shows the same as what it names now."""
    below = ("-b", backing.volume, "-F", backing.format)
    await _run("change", path, "rebase", "-q", "-u", "-f", "qcow2", *below, _name(path))


def _check(source: Path, found: ImageInfo, size: int | None) -> None:
    if found.format not in READABLE:
        raise ImageRefused(path=source, reason=f"it is {found.format}, not qcow2 or raw")
    if other := found.backing or found.data_file:
        raise ImageRefused(path=source, reason=f"it refers to another file, {other}")
    if size is not None and size < found.size:
        raise ImageRefused(
            path=source,
            reason=f"it holds {format_size(found.size)}, more than the {format_size(size)} wanted",
        )


@contextlib.asynccontextmanager
async def _new(path: Path, action: str) -> AsyncIterator[Path]:
    """A temporary file beside `path`, which becomes `path` when the block ends well.

    Nobody but its owner may read it: it is there before qemu-img would make one for everybody.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield part
        await asyncio.to_thread(_finish, part, path)
    except FileExistsError as error:
        raise ImageFailed(action=action, path=path, reason="it exists already") from error
    except OSError as error:
        raise ImageFailed(action=action, path=path, reason=error.strerror) from error
    finally:
        part.unlink(missing_ok=True)


def _finish(part: Path, path: Path) -> None:
    """Durable, then under its name. A link, unlike a rename, never replaces what is there."""
    _sync(part)
    os.link(part, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _run(action: str, path: Path, *arguments: str, good: tuple[int, ...] = (0,)) -> str:
    """qemu-img's output; it is killed if we are cancelled. `good`: exit codes of a success."""
    try:
        process = await asyncio.create_subprocess_exec(
            BINARY,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise QEMUMissing(path=BINARY, reason=error.strerror) from error
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in good:
        reason = errors.decode(errors="replace").strip().removeprefix("qemu-img: ")
        status = process.returncode
        raise ImageFailed(
            action=action, path=path, reason=reason or f"status {status}", status=status
        )
    return output.decode()


def _name(path: Path) -> str:
    """A file name that qemu-img never takes for a protocol (`nbd:…`) or an option."""
    return str(path.absolute())
