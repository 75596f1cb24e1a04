"""Files that come from another host: written chunk by chunk, checked as a whole, then put in place.

A part is `POOL/.sterna-parts/OWNER/VOLUME`. Promises: nothing bears the name of a volume before all
of it has been read back from storage and found to be what was sent; `place` never replaces a file;
holes stay holes. What a part holds is always found out by reading it, so it does not matter when
and how its writer died. Parts that nobody went on with for `EXPIRES_S` are deleted.

All functions of `Part` block; `Parts.run` runs them in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sterna import clock
from sterna.errors import BadSpec, FileNotStored, SternaError, VolumeExists
from sterna.host import chunks, storage
from sterna.host.registry import Pools
from sterna.model.disk import Volume
from sterna.model.host import Pool
from sterna.tasks import finish

log = logging.getLogger(__name__)
T = TypeVar("T")

DIRECTORY = ".sterna-parts"
EXPIRES_S = 24 * 3600.0  # a move that failed at night is tried again in the morning
JANITOR_S = 3600.0
THREADS = 8  # to write
CHECKERS = 4  # to read back, which takes minutes and must not keep others from being written
DIGESTS_S = 1.0  # of reading for one answer
MOST_DIGESTS = 4096  # in one answer: 128 KiB for 16 GiB of file

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


class Stopped(Exception):
    """Reading was given up, because nobody wants to know any more."""


class Part:
    """One file on its way, open. `close` it when no thread uses it any more.

    `like` is a file of this host that may hold much of the same at the same places.
    """

    def __init__(
        self, path: Path, size: int, *, is_writable: bool = True, like: Path | None = None
    ) -> None:
        self.path = path
        self.size = size
        self.is_writable = is_writable
        self._like = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if is_writable else os.O_RDONLY
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if is_writable and os.fstat(self._fd).st_size != size:
                os.ftruncate(self._fd, size)
            if is_writable and like is not None:
                self._like = os.open(like, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """May be repeated."""
        for fd in (self._fd, self._like):
            if fd >= 0:
                os.close(fd)
        self._fd = self._like = -1

    def digests(self, first: int, *, may_borrow: bool = True) -> bytes:
        """Of the chunks from `first` on, as many as are read within DIGESTS_S, at least one.

        With `may_borrow` what `like` has comes into places where there is nothing yet.
        """
        until = clock.monotonic() + DIGESTS_S
        found = bytearray()
        last = min(first + MOST_DIGESTS, chunks.count(self.size))
        for digest in self._held(first, last, may_borrow=may_borrow):
            found += digest
            if clock.monotonic() > until:
                break
        return bytes(found)

    def _held(self, first: int, last: int, *, may_borrow: bool) -> Iterator[bytes]:
        if self._like < 0 or not may_borrow:
            yield from chunks.held(self._fd, self.size, first, last)
            return
        for chunk in range(first, last):
            self._borrow(chunk)
            yield from chunks.held(self._fd, self.size, chunk, chunk + 1)

    def _borrow(self, chunk: int) -> None:
        """What the other file has at a place where nothing has arrived yet. If it is of no use it
        is written over.
        """
        start, size = chunk * chunks.CHUNK, chunks.length(self.size, chunk)
        mine = chunks.next_data(self._fd, start)
        theirs = chunks.next_data(self._like, start)
        if (mine is not None and mine < start + size) or theirs is None or theirs >= start + size:
            return
        data = os.pread(self._like, size, start)
        blocks, packed = chunks.pack(data)
        self._write_blocks(start, chunks.runs(blocks, len(data)), packed)

    def _write_blocks(self, start: int, runs: Iterable[tuple[int, int]], data: bytes) -> None:
        view, done = memoryview(data), 0
        for offset, run in runs:
            _write(self._fd, view[done : done + run], start + offset)
            done += run

    def store(self, chunk: int, blocks: int, data: bytes) -> None:
        """Make chunk number `chunk` be `data`, squeezed or not, in its `blocks`, and zero elsewhere.

        ValueError if they do not fit each other.
        """
        if not 0 <= chunk < chunks.count(self.size):
            raise ValueError(f"the file has no chunk {chunk}")
        size, start = chunks.length(self.size, chunk), chunk * chunks.CHUNK
        runs = list(chunks.runs(blocks, size))
        try:
            data = chunks.spread(data, sum(run for _, run in runs))
        except ValueError as error:
            raise ValueError(
                f"what came does not fit the blocks of chunk {chunk}: {error}"
            ) from error
        found = chunks.next_data(self._fd, start)
        if found is not None and found < start + size:
            _punch(self._fd, start, size)
        self._write_blocks(start, runs, data)

    def root(self, tell: Callable[[int], bool]) -> str:
        """The root of what is on storage: nothing that was written is taken from memory.

        `tell` is told how many bytes were looked at. Raises Stopped when it answers False.
        """
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        root = chunks.Root(self.size)
        for chunk, digest in enumerate(
            chunks.held(self._fd, self.size, 0, chunks.count(self.size))
        ):
            root.add(digest)
            if not tell(min(self.size, (chunk + 1) * chunks.CHUNK)):
                raise Stopped
        return root.text


class Parts:
    """All parts in the pools of this host."""

    def __init__(self, pools: Pools, *, host: str) -> None:
        self.host = host
        self._pools = pools
        self._in_use: set[Path] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="parts")
        self._checkers = ThreadPoolExecutor(CHECKERS, thread_name_prefix="parts-check")
        self.is_closing = False  # nothing long goes on

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in a thread. A caller that is cancelled gets away only when it has ended."""

        async def working() -> T:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

        return await finish(working())

    def check(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Long reading in a thread, when one has time for it; to be looked at later."""
        return asyncio.get_running_loop().run_in_executor(self._checkers, work)

    def close(self) -> None:
        """What reads for long gives up, so that the daemon can end."""
        self.is_closing = True
        for threads in (self._threads, self._checkers):
            threads.shutdown(wait=False, cancel_futures=True)

    # ---- one part --------------------------------------------------------------------------

    def open(self, owner: str, place: Volume, size: int, like: Path | None = None) -> Part:
        """The part that shall be `place`, as far as it is there. Raises FileNotStored, PoolUnusable."""
        path = self._path(self._pools.require(place.pool), owner, place.volume)
        with self.storing(place):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._in_use.add(path)
            try:
                return Part(path, size, like=like)
            except BaseException:
                self._in_use.discard(path)
                raise

    def held(self, owner: str, place: Volume) -> int:
        """Bytes on storage of the part that shall be `place`; 0 if there is none."""
        try:
            path = self._path(self._pools.require(place.pool), owner, place.volume)
            return path.stat().st_blocks * 512
        except (OSError, SternaError):
            return 0

    def release(self, part: Part) -> None:
        """Close it; it stays for who goes on with it."""
        part.close()
        self._in_use.discard(part.path)

    def place(self, part: Part, place: Volume) -> None:
        """Give a part its name, durably. Raises VolumeExists, FileNotStored; then it is a part still."""
        pool = self._pools.require(place.pool)
        path = storage.volume_path(pool, place.volume)
        with self.storing(place):
            try:
                os.link(part.path, path)  # unlike rename, never replaces
            except FileExistsError as error:
                if not part.path.samefile(path):  # else it is ours: whoever linked it was cut off
                    raise VolumeExists(path=path, pool=place.pool, volume=place.volume) from error
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                if path.exists():  # no hard links here (FAT, some SMB shares)
                    raise VolumeExists(path=path, pool=place.pool, volume=place.volume) from error
                part.path.rename(path)
        storage.sync_directory(pool)
        part.path.unlink(missing_ok=True)

    def existing(self, place: Volume) -> Part | None:
        """The file that is `place` already, to be looked at only."""
        path = storage.volume_path(self._pools.require(place.pool), place.volume)
        with self.storing(place):
            try:
                return Part(path, path.stat().st_size, is_writable=False)
            except FileNotFoundError:
                return None

    def remove(self, owner: str, pools: set[str]) -> None:
        """Remove all parts of `owner` in these pools; none may be in use. Raises PoolUnusable."""
        for name in pools:
            folder = self._folder(self._pools.require(name), owner)
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty(folder.parent)

    def _path(self, pool: Pool, owner: str, volume: str) -> Path:
        storage.volume_path(pool, volume)  # raises VolumeForbidden
        return self._folder(pool, owner) / volume

    @staticmethod
    def _folder(pool: Pool, owner: str) -> Path:
        if not _OWNER.fullmatch(owner):
            raise BadSpec(where="id", reason=f"{owner!r} is not the id of a VM")
        return Path(pool.path) / DIRECTORY / owner

    @contextlib.contextmanager
    def storing(self, place: Volume) -> Iterator[None]:
        """Whatever the storage says no to becomes FileNotStored."""
        try:
            yield
        except OSError as error:
            raise FileNotStored(
                volume=place, host=self.host, reason=error.strerror or str(error)
            ) from error

    # ---- what nobody goes on with ----------------------------------------------------------

    def sweep(self) -> None:
        """Delete the parts that have expired, in all pools that can be used now."""
        for pool in self._pools.list():
            try:
                self._pools.require(pool.name)
                self._sweep(Path(pool.path) / DIRECTORY)
            except (SternaError, OSError) as error:
                log.warning("parts in pool %s: %s", pool.name, error)

    def _sweep(self, folder: Path) -> None:
        if not folder.is_dir():
            return
        oldest = time.time() - EXPIRES_S
        for owner in [Path(entry) for entry in os.scandir(folder)]:
            for part in [Path(entry) for entry in os.scandir(owner)]:
                if part not in self._in_use and part.stat().st_mtime < oldest:
                    log.info("deleting %s, which nobody went on with", part)
                    part.unlink(missing_ok=True)
            _remove_empty(owner)
        _remove_empty(folder)

    async def janitor(self) -> None:
        """`sweep`, now and every hour."""
        while True:
            await self.run(self.sweep)
            await asyncio.sleep(JANITOR_S)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _punch(fd: int, offset: int, size: int) -> None:
    """Make a hole; where the file system has none, zeroes."""
    flags, off_t = ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE), ctypes.c_longlong
    if _libc.fallocate64(fd, flags, off_t(offset), off_t(size)) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number))
    _write(fd, memoryview(bytes(size)), offset)
