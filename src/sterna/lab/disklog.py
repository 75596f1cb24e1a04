"""Checks the log of numbered blocks that the lab's guest writes to its disk, in a raw image.

Promises to read only, to look at every block of the log, and to say exactly which are damaged or
missing. A log is whole when the last `slots` numbers up to the highest are all there and good. One
damaged block in the slot right after the highest is a write that a crash tore, and not an error:
the guest never called it durable. The layout is in `guest/wire.py`.
"""

import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path

from sterna.lab.guest import wire

_EMPTY = bytes(wire.BLOCK_STRUCT.size)
_ZERO_CRC = b"\0\0\0\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLog:
    """What a disk holds; numbers of blocks, and `bad` in slots (4096-byte blocks from its start)."""

    highest: int
    good: int
    slots: int
    bad: tuple[int, ...]
    missing: tuple[int, ...]
    torn: int | None
    boots: tuple[int, ...]

    def proves(self, durable: int) -> bool:
        """Whether it is whole and has everything that the guest called durable."""
        return not self.bad and not self.missing and self.highest >= durable


def seal(boot_id: int, seq: int, slots: int, *, first: int = 1, body: bytes = b"") -> bytes:
    """A good block as the guest writes it; `body` is what follows the header, padded with zeros."""
    head = wire.BLOCK_STRUCT.pack(wire.BLOCK_MAGIC, boot_id, seq, slots, first, 0, wire.VERSION)
    block = (head + body).ljust(wire.BLOCK_BYTES, b"\0")
    return block[: wire.CRC_OFFSET] + _crc(block) + block[wire.CRC_OFFSET + 4 :]


def _crc(block: bytes) -> bytes:
    cleared = block[: wire.CRC_OFFSET] + _ZERO_CRC + block[wire.CRC_OFFSET + 4 :]
    return zlib.crc32(cleared).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class _Found:
    slot: int
    boot_id: int
    seq: int
    slots: int
    first: int


def _look(slot: int, block: bytes) -> _Found | None:
    """The block if it is good, in the slot where its number belongs."""
    magic, boot_id, seq, slots, first, crc, _version = wire.BLOCK_STRUCT.unpack_from(block)
    if magic != wire.BLOCK_MAGIC or crc.to_bytes(4, "little") != _crc(block):
        return None
    if not slots or seq < 1 or (seq - 1) % slots != slot:
        return None
    return _Found(slot, boot_id, seq, slots, first)


def _scan(path: Path) -> tuple[list[_Found], list[int]]:
    found, bad = [], []
    size = path.stat().st_size // wire.BLOCK_BYTES
    if not size:
        return [], []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        for slot in range(size):
            block = image[slot * wire.BLOCK_BYTES : (slot + 1) * wire.BLOCK_BYTES]
            if not block.startswith(_EMPTY):
                if good := _look(slot, block):
                    found.append(good)
                else:
                    bad.append(slot)
    return found, bad


def check(path: Path) -> DiskLog:
    """Reads the log of a raw image; an image without a log has `highest` 0. Raises OSError."""
    found, bad = _scan(path)
    newest = max(found, key=lambda block: block.seq, default=None)
    if newest is None:
        return DiskLog(highest=0, good=0, slots=0, bad=tuple(bad), missing=(), torn=None, boots=())
    slots, highest = newest.slots, newest.seq
    found = [block for block in found if block.slots == slots and block.seq >= newest.first]
    bad = [slot for slot in bad if slot < slots]  # what lies behind the log is not ours to judge
    numbers = {block.seq for block in found}
    torn = highest % slots if highest % slots in bad else None
    expected = range(max(newest.first, highest - slots + 1), highest + 1)
    # The slot of a torn block held the oldest number: it is gone, as it was about to be.
    missing = [seq for seq in expected if seq not in numbers and (seq - 1) % slots != torn]
    damaged = [slot for slot in bad if slot != torn]
    return DiskLog(
        highest=highest,
        good=len(found),
        slots=slots,
        bad=tuple(damaged),
        missing=tuple(seq for seq in missing if (seq - 1) % slots not in damaged),
        torn=torn,
        boots=tuple(sorted({block.boot_id for block in found})),
    )
