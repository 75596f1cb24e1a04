"""One file copied with its SHA-256: sparse, on the disk, read back, and stopped at once when asked.

Promises: the target did not exist before, holds what the source held, and is durable when `carry`
returns; holes and zeroes take no room in it. What failed or was cancelled leaves its file to whoever
undoes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sterna.errors import FileCopyFailed
from sterna.host.chunks import next_data
from sterna.units import MIB

T = TypeVar("T")
CHUNK = MIB
_ZEROES = bytes(CHUNK)
_NOTHING: Callable[[int], None] = lambda _length: None  # noqa: E731


async def carry(source: Path, target: Path, copied: Callable[[int], None]) -> str:
    """Copy `source` to the new file `target`; its hash. Raises FileCopyFailed.

    `copied` is told in another thread of all bytes that are dealt with, holes included.
    """
    return await _threaded(lambda stop: _carry(source, target, copied, stop), source, target)


async def sha256(path: Path, read: Callable[[int], None] = _NOTHING) -> str:
    """The hash of a file. Raises FileCopyFailed."""
    return await _threaded(lambda stop: _digest(path, read, stop), path, path)


class _Stopped(Exception):
    """Asked to stop."""


async def _threaded(work: Callable[[threading.Event], T], source: Path, target: Path) -> T:
    """`work` in a thread of its own, which has ended when this has."""
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(OSError, _Stopped):
            await task
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileCopyFailed(source=source, target=target, reason=reason) from error


def _carry(source: Path, target: Path, copied: Callable[[int], None], stop: threading.Event) -> str:
    digest, data_only = hashlib.sha256(), hashlib.blake2b()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with source.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        fd = os.open(target, flags, 0o600)
        try:
            os.ftruncate(fd, before.st_size)
            for offset, data, length in _pieces(file.fileno(), before.st_size, stop):
                digest.update(data or _ZEROES[:length])
                if data:
                    _add(data_only, offset, data)
                    _write(fd, offset, data)
                copied(length)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # read what the disk has
        finally:
            os.close(fd)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(0, "it was changed while it was copied")
    if _read_back(target, stop) != data_only.digest():
        raise OSError(0, "what was read back is not what was written")
    return digest.hexdigest()


def _read_back(path: Path, stop: threading.Event) -> bytes:
    """Of the data alone: a thin file costs what it holds."""
    digest = hashlib.blake2b()
    with path.open("rb", buffering=0) as file:
        for offset, data, _ in _pieces(file.fileno(), os.fstat(file.fileno()).st_size, stop):
            if data:
                _add(digest, offset, data)
    return digest.digest()


def _add(digest: hashlib.blake2b, offset: int, data: bytes) -> None:
    digest.update(offset.to_bytes(8, "big"))
    digest.update(data)


def _digest(path: Path, read: Callable[[int], None], stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for _, data, length in _pieces(file.fileno(), os.fstat(file.fileno()).st_size, stop):
            digest.update(data or _ZEROES[:length])
            read(length)
    return digest.hexdigest()


def _pieces(fd: int, size: int, stop: threading.Event) -> Iterator[tuple[int, bytes, int]]:
    """Offset, data and length of each chunk, in order; no data for one of zeroes."""
    offset = 0
    data_at = next_data(fd, 0)
    while offset < size:
        if stop.is_set():
            raise _Stopped
        length = min(CHUNK, size - offset)
        if data_at is not None and data_at < offset + length:
            data = _read(fd, offset, length)
            yield offset, b"" if data == _ZEROES[:length] else data, length
            data_at = next_data(fd, offset + length) if offset + length < size else None
        else:
            yield offset, b"", length
        offset += length


def _read(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise OSError(0, "it became shorter while it was read")
        data += more
    return data


def _write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
