"""Has anybody written to the shared disks of a VM since its guest was stopped here?

A guest that goes on with memory older than its disks ruins them. So the stamps of the files that
a target could write to are kept with the handover, and compared before a fenced VM is continued;
without proof it is not continued: its QEMU is ended, and it can be booted.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from sterna.errors import SternaError
from sterna.host.registry import Pools
from sterna.model.vm import Disk, Stamp, VMRecord

QUICK_S = 0.1  # the guest stands still meanwhile
LOOK_S = 5.0  # a share may be slow


async def stamps(record: VMRecord, pools: Pools, within_s: float) -> tuple[Stamp, ...]:
    """Of each file that the target could write to; nothing for those that cannot be read in time."""
    try:
        async with asyncio.timeout(within_s):
            return await asyncio.to_thread(_read, record, pools)
    except TimeoutError:
        return ()


async def is_untouched(record: VMRecord, pools: Pools) -> bool:
    """Whether all these files are certainly as they were when the VM was given away."""
    wanted = {(disk.pool, disk.volume) for disk in _writable_there(record)}
    if not wanted:
        return True
    now = await stamps(record, pools, LOOK_S)
    return set(now) == set(record.stamps) and {(one.pool, one.volume) for one in now} == wanted


def _writable_there(record: VMRecord) -> list[Disk]:
    own = {(file.pool, file.volume) for file in record.departing}  # the target has its own copies
    return [
        disk
        for disk in record.spec.disks
        if not disk.read_only and (disk.pool, disk.volume) not in own
    ]


def _read(record: VMRecord, pools: Pools) -> tuple[Stamp, ...]:
    found = []
    for disk in _writable_there(record):
        try:
            status = Path(pools.volume_path(disk.pool, disk.volume)).stat()
        except (OSError, SternaError):
            continue
        found.append(
            Stamp(
                pool=disk.pool,
                volume=disk.volume,
                size=status.st_size,
                mtime_ns=status.st_mtime_ns,
            )
        )
    return tuple(found)
