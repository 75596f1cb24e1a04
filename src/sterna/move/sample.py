"""What a running guest's memory is like, told from a few thousand of its pages.

How much of it is not zero, how well that compresses, how fast it changes and by how much: read
through the file that QEMU keeps it in, which disturbs nobody and makes no page that was not there.
Looked at twice, a moment apart, while other things about a move are found out.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import zstandard

from sterna import clock

PAGE = 4096
PAGES = 2048  # looked at: 8 MiB, which takes some 10 ms
TRIED = 512  # of them are compressed
WINDOW_S = 0.12  # at least, between the two looks
LEVEL = 1  # of zstd: the relay's first one
FIRST_SHARE = 0.55  # between text and noise
AGAIN_SHARE = 0.08
_NAME = "/memfd:memory-backend-memfd"

T = TypeVar("T")
Pages = npt.NDArray[np.uint64]  # pages x words of a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A guest's, as it was found; the defaults: not known."""

    used: int  # bytes that are not zero
    first: float = FIRST_SHARE  # of those, what compression leaves
    dirty: float = 0.0  # bytes/s that change
    again: float = AGAIN_SHARE  # of a page that changed, what tells the difference


async def during(pid: int, work: Awaitable[T]) -> tuple[T, Memory | None]:
    """Look at the memory of the QEMU `pid` before and after `work`. None: it cannot be seen, or is gone."""
    ram = _open(pid)
    if ram is None:
        return await work, None
    try:
        before = await asyncio.to_thread(_Look, ram)
        found = await work
        await asyncio.sleep(max(0.0, WINDOW_S - (clock.monotonic() - before.at)))
        after = await asyncio.to_thread(_Look, ram, before.numbers)
        return found, await asyncio.to_thread(_compare, before, after)
    finally:
        os.close(ram)


def _open(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if str(entry.readlink()).startswith(_NAME):
                return os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    return None


class _Look:
    """Some pages at one moment, `pages[i]` is that of `numbers[i]`.

    One mapping, which goes back to the system as a whole: what is taken from the heap would stay.
    """

    def __init__(self, ram: int, numbers: list[int] | None = None) -> None:
        pages = os.fstat(ram).st_size // PAGE
        chosen = random.sample(range(pages), min(pages, PAGES))
        self.size = pages * PAGE
        self.numbers = sorted(chosen) if numbers is None else numbers
        self.at = clock.monotonic()
        room = mmap.mmap(-1, max(1, len(self.numbers)) * PAGE)
        self.pages: Pages = np.frombuffer(room, np.uint64).reshape(-1, PAGE // 8)
        for number, page in zip(self.numbers, self.pages, strict=True):
            os.preadv(ram, [page.data], number * PAGE)


def _compare(before: _Look, after: _Look) -> Memory:
    """`before` keeps the differences instead of its pages."""
    each = before.size / max(1, len(before.numbers))
    used = np.flatnonzero(after.pages.any(axis=1))
    np.bitwise_xor(before.pages, after.pages, out=before.pages)
    changes = np.flatnonzero(before.pages.any(axis=1))
    seconds = after.at - before.at
    return Memory(
        used=round(len(used) * each),
        first=_share(after.pages, used, FIRST_SHARE),
        dirty=len(changes) * each / seconds,
        again=_share(before.pages, changes, AGAIN_SHARE),
    )


def _share(pages: Pages, chosen: npt.NDArray[np.intp], unknown: float) -> float:
    """What compression leaves of those that are `chosen`."""
    data = pages[chosen[:: max(1, len(chosen) // TRIED)]].tobytes()
    if not data:
        return unknown
    return min(1.0, len(zstandard.ZstdCompressor(level=LEVEL).compress(data)) / len(data))
