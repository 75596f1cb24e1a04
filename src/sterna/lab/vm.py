"""Virtual machines for a lab's hosts: specs that boot the lab's guest with a workload.

A spec is the body of `POST /v1/vms`; nothing is created here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from sterna.lab.guest.image import GuestImage, cmdline
from sterna.lab.guest.wire import DISKS
from sterna.lab.hosts import SHARED_POOL, SWITCH
from sterna.lab.lab import Lab
from sterna.lab.links import CLIENT_ADDRESS, GUEST_ADDRESSES, PREFIX

FIRST_ADDRESS = 100  # below are hosts and the client
MAX_NUMBER = 153
BEAT_PORT = 7000  # of the client; UDP
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the guest does from its start. Rates of 0 leave that part out."""

    memory_mb_s: int = 0  # dirtied pages, as MB/s of guest memory
    memory_mb: int = 100  # how much of its memory it dirties
    pattern: str = "touch"  # touch: 8 bytes of each page; random, text: whole pages
    disk_blocks_s: int = 0  # numbered, checksummed 4 KiB blocks to each disk
    disks: int = 1  # how many it has, if it writes to any
    disk_mb: int = 64  # size of each
    span_mb: int = 0  # how much of each it writes, from the start, in a circle; 0: up to 64
    pool: str = SHARED_POOL
    formats: tuple[str, ...] = ("raw",)  # of its disks, in turn


def spec(
    guest: GuestImage,
    name: str,
    number: int = 0,
    *,
    memory: int = 256 * MIB,
    load: Load | None = None,
) -> dict[str, Any]:
    """VM number `number` of a lab, which gives it an address of its own. With the disks that its
    load writes to.
    """
    load = load or Load()
    touched = f"{load.memory_mb}:{load.memory_mb_s}:{load.pattern}" if load.memory_mb_s else None
    line = cmdline(
        ip=f"{address(number)}/{PREFIX}",
        client=f"{CLIENT_ADDRESS}:{BEAT_PORT}",
        mem=touched,
        disk=_written(load) if load.disk_blocks_s else None,
    )
    disks = [
        {"name": disk, "pool": load.pool, "format": format_, "size": load.disk_mb * MIB}
        for disk, format_ in zip(DISKS[: load.disks], itertools.cycle(load.formats), strict=False)
    ]
    return {
        "name": name,
        "vcpus": 1,
        "memory": memory,
        "graphics": False,
        "boot": {"kernel": str(guest.kernel), "initrd": str(guest.initrd), "cmdline": line},
        "nics": [{"name": "net0", "switch": SWITCH}],
        "disks": disks if load.disk_blocks_s else [],
        "tags": ["lab"],
    }


def _written(load: Load) -> str:
    """Of `cmdline`. The guest's own choice is 64 MB of each disk."""
    return f"{load.disk_blocks_s}:{load.span_mb}:{load.disks}"


def free_number(lab: Lab) -> int:
    """The lowest number whose address no VM of the lab has."""
    lines = [
        (view["spec"]["boot"] or {}).get("cmdline", "")
        for host in lab.hosts
        for view in host.client.get("/v1/vms")
    ]
    numbers = range(MAX_NUMBER + 1)
    return next(n for n in numbers if not any(f"={address(n)}/{PREFIX}" in line for line in lines))


def address(number: int) -> str:
    """IP address of VM number `number` on the data network."""
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"VM number {number} is not between 0 and {MAX_NUMBER}")
    return GUEST_ADDRESSES.format(FIRST_ADDRESS + number)
