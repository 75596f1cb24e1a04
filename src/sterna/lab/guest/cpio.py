"""Writes an initramfs: a cpio archive in the kernel's "newc" form, the same bytes for the same input.

The format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Owners are
root, times are zero and inode numbers count up, so that two builders make identical archives.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass

_ALIGN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, folder, link or character device; `name` has no leading slash."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(name: str) -> Entry:
    return Entry(name=name, mode=stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(name=name, mode=stat.S_IFREG | (0o755 if executable else 0o644), data=data)


def link(name: str, target: str) -> Entry:
    return Entry(name=name, mode=stat.S_IFLNK | 0o777, data=target.encode())


def device(name: str, major: int, minor: int) -> Entry:
    return Entry(name=name, mode=stat.S_IFCHR | 0o600, device=(major, minor))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGN)


def _record(inode: int, entry: Entry) -> Iterator[bytes]:
    name = entry.name.encode() + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # owner
        0,  # group
        1,  # links
        0,  # time
        len(entry.data),
        0,
        0,
        *entry.device,
        len(name),
        0,  # the checksum, unused in this form
    )
    yield _padded(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
    yield _padded(entry.data)


def archive(entries: list[Entry]) -> bytes:
    """The archive of `entries`, in their order: a folder must come before what lies in it."""
    parts: list[bytes] = []
    for inode, entry in enumerate([*entries, Entry(name="TRAILER!!!", mode=0)], start=1):
        parts.extend(_record(inode, entry))
    return b"".join(parts)
