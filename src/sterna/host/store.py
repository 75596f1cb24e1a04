"""Durable records, one JSON file each: `DIRECTORY/KEY.json`.

Promises: what `write` returned from survives a power cut; a reader sees the old record or the
new one, never a mixture; a write that fails leaves the old record as it was. Writes and deletes
of one store take effect in the order they were asked for. A file that cannot be read is set aside
as `KEY.json.damaged-TIME` and reported, again at each load, until somebody removes it.

Never drops a record, never repairs one, and knows nothing of what is inside. One process owns a
store at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sterna import clock
from sterna.errors import StateNotWritten, SternaError
from sterna.model.edge import dump_json, parse_json

log = logging.getLogger(__name__)
T = TypeVar("T")

SUFFIX = ".json"
_TEMPORARY = re.compile(r"\..+\.json\..+\.tmp")
_SET_ASIDE = re.compile(r"(?P<key>.+)\.json\.damaged-[^/]+")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}")  # leaves room for suffixes in 255 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A record that cannot be read, and where it was put."""

    key: str
    path: Path
    reason: str


class Store(Generic[T]):
    """The records of class `cls` below `directory`, which is made when it is first written to.

    `key_of` tells the key that a record must be filed under; a file that holds another is damaged.
    """

    def __init__(
        self, directory: Path, cls: type[T], *, key_of: Callable[[T], str] | None = None
    ) -> None:
        self.directory = directory
        self._cls = cls
        self._key_of = key_of
        # One thread, so that the order of the calls is the order on disk. It starts when needed.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"store-{directory.name}")

    # ---- reading ---------------------------------------------------------------------------

    def load(self) -> tuple[dict[str, T], list[Damaged]]:
        """All records by key, and what is damaged. Removes what an interrupted write left."""
        records: dict[str, T] = {}
        damaged: list[Damaged] = []
        try:
            names = sorted(entry.name for entry in os.scandir(self.directory))
        except FileNotFoundError:
            return records, damaged
        for name in names:
            path = self.directory / name
            if name.endswith(SUFFIX) and not name.startswith("."):
                key = name.removesuffix(SUFFIX)
                try:
                    records[key] = self._read(key, path)
                except _Unreadable as error:
                    damaged.append(self._set_aside(key, path, str(error)))
            elif match := _SET_ASIDE.fullmatch(name):
                damaged.append(self._look_again(match["key"], path))
            elif _TEMPORARY.fullmatch(name):
                log.info("removed %s, left by an interrupted write", path)
                path.unlink(missing_ok=True)
        return records, damaged

    def _read(self, key: str, path: Path) -> T:
        try:
            record = parse_json(self._cls, path.read_bytes(), path.name)
        except OSError as error:
            raise _Unreadable(error.strerror or str(error)) from error
        except SternaError as error:
            raise _Unreadable(error.message.removeprefix(f"{path.name}: ")) from error
        except Exception as error:  # one strange file must not hide all the others
            raise _Unreadable(repr(error)) from error
        if self._key_of is not None and (inside := self._key_of(record)) != key:
            raise _Unreadable(f"it holds the record of {inside}")
        return record

    def _set_aside(self, key: str, path: Path, reason: str) -> Damaged:
        stamp = re.sub(r"[^0-9TZ]", "", clock.now())
        aside = path.with_name(f"{path.name}.damaged-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
        try:
            path.rename(aside)
            _sync_directory(self.directory)
        except OSError as error:
            log.error("cannot set %s aside: %s", path, error)  # noqa: TRY400 - no traceback needed
            aside = path
        log.error("%s is damaged and is now %s: %s", path, aside, reason)
        return Damaged(key=key, path=aside, reason=reason)

    def _look_again(self, key: str, path: Path) -> Damaged:
        try:
            self._read(key, path)
        except _Unreadable as error:
            reason = str(error)
        else:
            reason = f"it was set aside earlier and reads well now: rename it to {key}{SUFFIX}"
        return Damaged(key=key, path=path, reason=reason)

    # ---- writing ---------------------------------------------------------------------------

    async def write(self, key: str, value: T) -> None:
        """Put `value` under `key`, durably. Raises StateNotWritten: then the old one still stands.

        A caller that is cancelled gets its CancelledError when the record *has been* written, so
        that nothing is ever in flight behind its back.
        """
        await _settle(self._submit_write(key, value))

    async def delete(self, key: str) -> None:
        """Remove the record of `key`, durably; it may be gone already. Else as `write`."""
        await _settle(self._submit_delete(key))

    def write_now(self, key: str, value: T) -> None:
        """`write` for callers without an event loop; blocks."""
        self._submit_write(key, value).result()

    def delete_now(self, key: str) -> None:
        """`delete` for callers without an event loop; blocks."""
        self._submit_delete(key).result()

    def _submit_write(self, key: str, value: T) -> Future[None]:
        data = dump_json(value, indent=2) + b"\n"  # before the thread: the caller's own errors
        return self._writer.submit(_replace, self._path(key), data)

    def _submit_delete(self, key: str) -> Future[None]:
        return self._writer.submit(_remove, self._path(key))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot be the key of a record")
        return self.directory / f"{key}{SUFFIX}"


class _Unreadable(Exception):
    """Why a file does not hold the record that it should."""


async def _settle(future: Future[None]) -> None:
    """Wait for `future`, even through a cancellation, which is raised after a success."""
    waiter = asyncio.wrap_future(future)
    cancelled: asyncio.CancelledError | None = None
    while not waiter.done():
        try:
            await asyncio.shield(waiter)
        except asyncio.CancelledError as error:
            cancelled = error
        except StateNotWritten:
            break  # raised by result() below
    waiter.result()
    if cancelled is not None:
        raise cancelled


def replace_file(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, atomically and durably; OSError leaves it as it was."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    _sync_directory(path.parent)


def _replace(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise StateNotWritten(path=path, reason=error.strerror or str(error)) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _sync_directory(path.parent)
    except OSError as error:
        raise StateNotWritten(path=path, reason=error.strerror or str(error)) from error


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
