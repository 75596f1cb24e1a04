"""Over how many connections QEMU sends memory to QEMU: multifd, where it helps.

One thread of QEMU encrypts and sends a single stream, and a fast link waits for it. With multifd each
channel has a thread of its own on both hosts. The source offers a number, the target accepts it or
a smaller one; 0 stands for the single stream, which is all that a slow link or a small host needs.
Never together with post-copy: a QEMU before 10.1 accepts both and loses the VM.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from sterna.move.carriers import DIRECT_BYTES_S
from sterna.qemu.commands import Monitor

MULTIFD = "multifd"
FEWEST, MOST = 2, 8  # one channel is a single stream with more work
GUESTS_SHARE = 2  # one processor of so many, the others are for guests


def offered(
    wished: int | None,
    known: Collection[str],
    *,
    cpus: int,
    link: float | None,
    limit: int | None,
) -> int:
    """Channels that the source would like. `wished`: its configuration, None to choose; `known`:
    migration capabilities of its QEMU; `link` and `limit` in bytes/s, None: not known, none.
    """
    if MULTIFD not in known:
        return 0
    if wished is not None:
        return _usable(wished)
    if link is None:
        return 0
    rate = min(link, limit) if limit else link
    return _usable(min(math.ceil(rate / DIRECT_BYTES_S), cpus // GUESTS_SHARE))


def accepted(offer: int, wished: int | None, known: Collection[str], *, cpus: int) -> int:
    """Channels that both will use: what the target takes of the `offer`."""
    if MULTIFD not in known:
        return 0
    return _usable(min(offer, cpus // GUESTS_SHARE if wished is None else wished))


def _usable(count: int) -> int:
    return min(count, MOST) if count >= FEWEST else 0


def capability(channels: int) -> frozenset[str]:
    """What both ends switch on for so many channels."""
    return frozenset({MULTIFD}) if channels else frozenset()


async def prepare(qmp: Monitor, channels: int) -> None:
    """Tell QEMU, on both ends before they connect. A number that differs would fail the move."""
    if channels:
        await qmp.migrate_set_parameters(
            **{"multifd-channels": channels, "multifd-compression": "none"}
        )
