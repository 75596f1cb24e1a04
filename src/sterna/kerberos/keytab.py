"""Keytab files: which keys of whom there are, without the keys. Format: MIT's, version 0x0502."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_VERSION = b"\x05\x02"
DEFAULT = "/etc/krb5.keytab"
WEAK = frozenset({1, 2, 3, 16, 23, 24})  # DES, 3DES, RC4


@dataclass(frozen=True, slots=True)
class Entry:
    """One key."""

    principal: str  # with its realm
    version: int  # kvno
    encryption: int  # number of RFC 3961


def read(file: Path) -> tuple[Entry, ...]:
    """All keys of the file. Raises OSError, and ValueError for what is no keytab."""
    data = file.read_bytes()
    if data[:2] != _VERSION:
        raise ValueError("it is no keytab")
    try:
        return tuple(_entries(data))
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError("it is a damaged keytab") from error


def _entries(data: bytes) -> Iterator[Entry]:
    at = len(_VERSION)
    while at + 4 <= len(data):
        (size,) = struct.unpack_from(">i", data, at)
        at += 4
        if size > 0:  # a negative one is a hole
            yield _entry(data[at : at + size])
        elif size == 0:
            return
        at += abs(size)


def _entry(data: bytes) -> Entry:
    (count,) = struct.unpack_from(">H", data)
    at, parts = 2, []
    for _ in range(count + 1):  # the realm first
        (length,) = struct.unpack_from(">H", data, at)
        parts.append(data[at + 2 : at + 2 + length].decode())
        at += 2 + length
    at += 8  # kind of name, time
    version, encryption, length = struct.unpack_from(">BHH", data, at)
    at += 5 + length
    if len(data) - at >= 4:  # versions above 255
        (version,) = struct.unpack_from(">I", data, at)
    return Entry(f"{'/'.join(parts[1:])}@{parts[0]}", version, encryption)
