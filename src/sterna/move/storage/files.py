"""Files copied within one host: sparse, proven by hash, and stopped at once when asked.

Promises: the target holds what the source held and is on the disk when `carry` returns; holes and
zeroes of the source take no room in it; an existing file is never written to. A copy that fails or
is cancelled leaves its file: the record (`VMRecord.made`) names it, and whoever undoes removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sterna import clock
from sterna.errors import FileCopyFailed
from sterna.units import MIB

CHUNK = MIB  # what is compared with zeroes, and read at once
_ZEROES = bytes(CHUNK)


async def carry(
    source: Path,
    target: Path,
    *,
    executor: ThreadPoolExecutor,
    copied: Callable[[int], None],
    speed: int = 0,
) -> int:
    """Copy `source` to the new file `target`; how many bytes of data that were.

    `copied` is told, in another thread, of each chunk that was dealt with, holes included; `speed`
    in bytes/s, 0: no limit. Raises FileCopyFailed.
    """
    stop = threading.Event()
    copy = _Copy(source, target, stop, copied, speed)
    work = asyncio.get_running_loop().run_in_executor(executor, copy.run)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(FileCopyFailed, _Stopped):
            await work
        raise


async def same(one: Path, other: Path, executor: ThreadPoolExecutor) -> bool:
    """Whether two files have the same content. Raises FileCopyFailed."""
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    work = [
        loop.run_in_executor(executor, _digest_of, path, stop, _ignore) for path in (one, other)
    ]
    try:
        first, second = await asyncio.gather(*work)
    except asyncio.CancelledError:
        stop.set()
        raise
    except OSError as error:
        raise FileCopyFailed(source=one, target=other, reason=error.strerror) from error
    return first == second


class _Stopped(Exception):
    """Asked to stop."""


class _Copy:
    """One file, in one thread."""

    def __init__(
        self,
        source: Path,
        target: Path,
        stop: threading.Event,
        copied: Callable[[int], None],
        speed: int,
    ) -> None:
        self._source = source
        self._target = target
        self._stop = stop
        self._copied = copied
        self._speed = speed

    def run(self) -> int:
        try:
            return self._run()
        except OSError as error:
            raise FileCopyFailed(
                source=self._source, target=self._target, reason=error.strerror or str(error)
            ) from error

    def _run(self) -> int:
        digest, written = hashlib.blake2b(), 0
        began = clock.monotonic()
        with self._source.open("rb", buffering=0) as source:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(self._target, flags, 0o600)
            try:
                before = os.fstat(source.fileno())
                size = before.st_size
                os.ftruncate(fd, size)
                digest.update(size.to_bytes(8, "big"))
                for offset, data in _chunks(source.fileno(), size, self._stop, self._copied):
                    _add(digest, offset, data)
                    _write(fd, offset, data)
                    written += len(data)
                    if self._speed:
                        ahead = written / self._speed - (clock.monotonic() - began)
                        self._stop.wait(max(0.0, ahead))
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # read what the disk has
            finally:
                os.close(fd)
        if _digest_of(self._target, self._stop, _ignore) != digest.digest():
            raise OSError(0, "what was read back is not what was written")
        after = self._source.stat()
        if not os.path.samestat(after, before) or _written(after) != _written(before):
            raise OSError(0, "it was written to while it was read")
        return written


def _written(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _digest_of(path: Path, stop: threading.Event, copied: Callable[[int], None]) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "big"))
        for offset, data in _chunks(file.fileno(), size, stop, copied):
            _add(digest, offset, data)
    return digest.digest()


def _add(digest: hashlib.blake2b, offset: int, data: bytes) -> None:
    digest.update(offset.to_bytes(8, "big"))
    digest.update(data)


def _chunks(
    fd: int, size: int, stop: threading.Event, copied: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """All chunks that are not zero, at multiples of CHUNK, wherever the holes of the file are."""
    offset = 0
    while offset < size:
        if stop.is_set():
            raise _Stopped
        start = _next_data(fd, offset, size) // CHUNK * CHUNK
        if start > offset:
            copied(min(start, size) - offset)
            offset = start
        if offset >= size:
            break
        data = _read(fd, offset, min(CHUNK, size - offset))
        if data != _ZEROES[: len(data)]:
            yield offset, data
        copied(len(data))
        offset += len(data)


def _next_data(fd: int, offset: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # only a hole follows
            raise
        return (size + CHUNK - 1) // CHUNK * CHUNK


def _read(fd: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            raise OSError(0, "it became shorter while it was read")
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _ignore(_length: int) -> None:
    return
