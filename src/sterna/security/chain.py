"""The audit's files: lines of JSON, each with the hash of the line before it. No threads here.

    DIRECTORY/audit-000001.jsonl, audit-000002.jsonl, …   {"n":1,"prev":"…",…}
    DIRECTORY/head                                        number and hash of the last line

Promises: what `append` returned from survives a power cut; a line that cannot be written whole is
not there at all. Whatever an interrupted write, or somebody else, has left at the end is kept under
another name and told in the next line, never passed over.

A chain shows what was changed inside it. Who may write these files can make a whole new chain:
against that, note the head somewhere else (`sterna audit verify --expect`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna import clock

MAX_FILE = 16 << 20  # bytes; then the next one begins
ORIGIN = "0" * 64  # what the first line follows
_HEAD = "{n:012} {hash}\n"
_TAIL = 1 << 20  # bytes; no line is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Of all lines. `broken`: the first place that is not as it was written; empty: none."""

    entries: int
    first: int
    last: int
    head: str  # hash of the last line
    broken: str = ""


def digest(line: bytes) -> str:
    """Of a line without its end."""
    return hashlib.sha256(line).hexdigest()


def files(directory: Path) -> list[Path]:
    """The oldest first."""
    return sorted(directory.glob("audit-*.jsonl"))


class Chain:
    """The one writer of `directory`, which is made if it is not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._number, self._prev = 0, ORIGIN
        self._fd, self._size = -1, 0
        self._found: list[dict[str, Any]] = []  # to be told
        self._open()
        self._head = os.open(directory / "head", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._look_at_head()
        self.tell_found()

    # ---- writing ---------------------------------------------------------------------------

    def tell_found(self) -> None:
        """Write down what was found at the start, unless the disk is full: then later."""
        with contextlib.suppress(OSError):
            while self._found:
                self._append(self._found[0])
                self._found.pop(0)

    def append(self, fields: dict[str, Any]) -> int:
        """Write a line, durably; its number. Raises OSError: then it is not there."""
        self.tell_found()
        return self._append(fields)

    def _append(self, fields: dict[str, Any]) -> int:
        if self._size > MAX_FILE:
            self._begin()
        number = self._number + 1
        entry = {"n": number, "prev": self._prev, "time": clock.now(), **fields}
        line = json.dumps(entry, separators=(",", ":"), sort_keys=True).encode()
        os.ftruncate(self._fd, self._size)  # what a failed write has left
        try:
            _write(self._fd, line + b"\n", self._size)
            os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line) + 1
        self._number, self._prev = number, digest(line)
        # It may lag after a power cut, and is never ahead of what is on the disk.
        with contextlib.suppress(OSError):
            os.pwrite(self._head, _HEAD.format(n=number, hash=self._prev).encode(), 0)
        return number

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._head)

    def _begin(self) -> None:
        """The next file."""
        newest = files(self.directory)
        number = int(newest[-1].stem.partition("-")[2]) + 1 if newest else 1
        path = self.directory / f"audit-{number:06}.jsonl"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, 0

    # ---- what was there --------------------------------------------------------------------

    def _open(self) -> None:
        existing = files(self.directory)
        if not existing:
            self._begin()
            return
        self._fd = os.open(existing[-1], os.O_RDWR | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size
        self._keep_torn(existing[-1])
        for path in reversed(existing):
            line = _last_line(path)
            if line:
                self._prev = digest(line)
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._number = int(json.loads(line)["n"])
                return

    def _keep_torn(self, path: Path) -> None:
        """What follows the last line end was never told to anybody: it is set aside."""
        begin = max(0, self._size - _TAIL)
        tail = os.pread(self._fd, self._size - begin, begin)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        kept = self.directory / f"torn-{clock.now().replace(':', '')}"
        text = f"the end of {path.name} was cut off in the middle of a line: {len(torn)} bytes"
        try:
            fd = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, torn, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:  # a full disk: the host starts all the same
            lost = torn.decode(errors="replace")
            text += f", which could not be kept ({error.strerror}): {lost}"
        self._size -= len(torn)
        os.ftruncate(self._fd, self._size)
        self._found.append({"what": "torn", "text": text, "kept": kept.name})

    def _look_at_head(self) -> None:
        number, hash_ = _read_head(self._head)
        if self._number and not number:
            text = "the head file is missing: nobody can tell whether lines at the end are"
            self._found.append({"what": "damaged", "text": text})
        elif number > self._number:
            text = f"lines {self._number + 1} to {number} are missing"
            self._found.append({"what": "damaged", "text": text})
            self._number = number  # the gap stays to be seen
        elif number == self._number and number and hash_ != self._prev:
            text = f"line {number} is not what was written"
            self._found.append({"what": "damaged", "text": text})


def verify(directory: Path) -> Verdict:
    """Read all and follow the chain. Blocks for some 50 ms a megabyte."""
    prev, expected, first, count, broken, last_place = "", 0, 0, 0, "", ""
    for path, row, line in _lines(directory):
        place = f"{path.name} line {row}"
        if not line.endswith(b"\n"):
            broken = broken or f"{place}: it is cut off"
        try:
            entry = json.loads(line)
            number, follows = int(entry["n"]), str(entry["prev"])
            if entry.get("what") == "damaged":
                broken = broken or f"{place}: {entry.get('text')}"
        except (ValueError, KeyError, TypeError):
            broken = broken or f"{place}: it is no entry"
            number, follows = expected, prev
        first = first or number
        if count and not broken and number != expected:
            broken = f"{place}: it is number {number}, and {expected} should be here"
        if count and not broken and follows != prev:
            broken = f"{last_place}: it is not what {place} follows, so it was changed"
        if not count and number == 1 and follows != ORIGIN:
            broken = broken or f"{place}: the first line follows something"
        prev, expected, count, last_place = digest(line.rstrip(b"\n")), number + 1, count + 1, place
    return Verdict(
        entries=count,
        first=first,
        last=expected - 1 if count else 0,
        head=prev or ORIGIN,
        broken=broken or _against_head(directory, expected - 1 if count else 0, prev, last_place),
    )


def _against_head(directory: Path, last: int, hash_: str, place: str) -> str:
    try:
        fd = os.open(directory / "head", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "head: it is missing, so that lines at the end may be, too"
    try:
        number, wanted = _read_head(fd)
    finally:
        os.close(fd)
    if number > last:
        return f"{place or 'audit'}: lines {last + 1} to {number} are missing after it"
    if number == last and last and wanted != hash_:
        return f"{place}: it was changed"
    return ""


def entries(directory: Path) -> Iterator[dict[str, Any]]:
    """All that can be read, the newest first."""
    for path in reversed(files(directory)):
        for line in reversed(path.read_bytes().splitlines()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield found


def _lines(directory: Path) -> Iterator[tuple[Path, int, bytes]]:
    for path in files(directory):
        with path.open("rb") as file:
            for row, line in enumerate(file, 1):
                yield path, row, line


def _last_line(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return (file.read().rstrip(b"\n").rsplit(b"\n", 1) or [b""])[-1]


def _read_head(fd: int) -> tuple[int, str]:
    text = os.pread(fd, 200, 0).decode(errors="replace").split()
    try:
        return int(text[0]), text[1]
    except (IndexError, ValueError):
        return 0, ""


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
