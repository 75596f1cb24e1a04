"""QEMU's migration stream, made without a QEMU: for tests and benchmarks of what reads it."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
ZERO, PAGE_FLAG, EOS, CONTINUE, SIZES = 2, 8, 0x10, 0x20, 4
HEADER = b"QEVM\0\0\0\3"
RAM = 2  # id of its section


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def named(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def footer(section: int = RAM) -> bytes:
    return b"\x7e" + struct.pack(">I", section)


def full(name: str, content: bytes, section: int, *, kind: int = 4) -> bytes:
    """A device's section, or the first part of one."""
    head = struct.pack(">BI", kind, section) + named(name) + struct.pack(">II", 0, 1)
    return head + content + footer(section)


def setup(blocks: dict[str, int], *, page_sizes: bool = False) -> bytes:
    """The stream up to the end of the list of RAM blocks, sizes in bytes."""
    listed = b"".join(
        named(name) + words(size) + (words(PAGE) if page_sizes else b"")
        for name, size in blocks.items()
    )
    return HEADER + full(
        "ram", words(sum(blocks.values()) | SIZES) + listed + words(EOS), RAM, kind=1
    )


def part(records: bytes, *, kind: int = 2) -> bytes:
    return struct.pack(">BI", kind, RAM) + records + words(EOS) + footer()


def first(block: str, number: int, page: bytes | None) -> bytes:
    """A record that names its block; `page` None: zero."""
    if page is None:
        return words(number * PAGE | ZERO) + named(block) + b"\0"
    return words(number * PAGE | PAGE_FLAG) + named(block) + page


def run(numbers: Iterable[int], pages: NDArray[np.uint8]) -> bytes:
    """Records that go on in the block of the one before; pages: (n, 4096)."""
    records = np.empty((len(pages), 8 + PAGE), np.uint8)
    heads = np.fromiter(numbers, np.uint64) * np.uint64(PAGE) + np.uint64(PAGE_FLAG | CONTINUE)
    records[:, :8] = heads.astype(">u8").view(np.uint8).reshape(-1, 8)
    records[:, 8:] = pages
    return records.tobytes()


def zeros(numbers: Iterable[int]) -> bytes:
    """Records of zero pages that go on in the block of the one before."""
    heads = np.fromiter(numbers, np.uint64) * np.uint64(PAGE) + np.uint64(ZERO | CONTINUE)
    records = np.zeros((len(heads), 9), np.uint8)
    records[:, :8] = heads.astype(">u8").view(np.uint8).reshape(-1, 8)
    return records.tobytes()


def end(description: bytes = b"{}") -> bytes:
    return b"\0\x06" + struct.pack(">I", len(description)) + description


def random_pages(count: int, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE), np.uint8)


def text_pages(count: int, seed: int = 1) -> NDArray[np.uint8]:
    """Words of a language of its own, each page different."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(97, 123, (400, 8), np.uint8)
    letters[:, 7] = 32
    return letters[rng.zipf(1.3, (count, PAGE // 8)) % 400].reshape(count, PAGE)
