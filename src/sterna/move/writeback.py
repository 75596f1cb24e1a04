"""Disks that arrive go to this host's storage while they come, not all at the end.

A mirror counts as synchronous only once the target's storage has all of it, and a guest that is
stopped to be handed over waits for its last writes there. The kernel by itself holds back up to a
tenth of the host's memory in its page cache, for up to 30 s. Says nothing about what is durable:
that is for QEMU to ask. Never writes to a disk itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

PERIOD_S = 0.3  # what a guest writes in this time is all that is left to wait for
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)


async def write_back(paths: Sequence[Path], ended: asyncio.Event) -> None:
    """Have the kernel write what it holds of these files, again and again until `ended`."""
    while not ended.is_set():
        for path in paths:
            # Removed meanwhile, or its storage fails: whoever writes to it is told of that.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_begin_writing, path)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PERIOD_S):
                await ended.wait()


def _begin_writing(path: Path) -> None:
    """Blocks only while the storage's queue is full, which paces us on slow storage.

    Not fdatasync: waiting for the journal and the disk's own cache, it was often under way just
    when the guest was stopped, whose last flush then took 100 to 400 ms (seen with ext4).
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        whole = ctypes.c_int64(0), ctypes.c_int64(0)
        if _libc.sync_file_range(file, *whole, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(file)
