"""Checks the log of numbered blocks that the lab's guest writes to each disk, in the disk's image.

Promises to read only, to look at every block of the log, and to say exactly which are damaged or
missing. A log is whole when the last `slots` numbers up to the highest are all there and good. One
damaged block in the slot right after the highest is a write that a crash tore, and not an error:
the guest never called it durable. The layout is in `guest/wire.py`. A qcow2 image, with those that
it is made on, is read as a raw copy of it. If a VM has it open, its guest must not write meanwhile.
"""

import mmap
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from sterna.lab.guest import wire

_EMPTY = bytes(wire.BLOCK_STRUCT.size)
_QCOW2 = b"QFI\xfb"
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


def seal(  # noqa: PLR0913 - a block has these fields
    boot_id: int, seq: int, slots: int, *, first: int = 1, body: bytes = b"", disk: int = 0
) -> bytes:
    """A good block as the guest writes it; `body` is what follows the header, padded with zeros."""
    numbers = (boot_id, seq, slots, first, 0, wire.VERSION, disk)
    head = wire.BLOCK_STRUCT.pack(wire.BLOCK_MAGIC, *numbers)
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


def _look(slot: int, block: bytes, disk: int) -> _Found | None:
    """The block if it is good, in the slot where its number belongs."""
    magic, boot_id, seq, slots, first, crc, _version, of = wire.BLOCK_STRUCT.unpack_from(block)
    if magic != wire.BLOCK_MAGIC or crc.to_bytes(4, "little") != _crc(block):
        return None
    if of != disk or not slots or seq < 1 or (seq - 1) % slots != slot:
        return None
    return _Found(slot, boot_id, seq, slots, first)


def _scan(path: Path, disk: int) -> tuple[list[_Found], list[int]]:
    found, bad = [], []
    size = path.stat().st_size // wire.BLOCK_BYTES
    if not size:
        return [], []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        for slot in range(size):
            block = image[slot * wire.BLOCK_BYTES : (slot + 1) * wire.BLOCK_BYTES]
            if not block.startswith(_EMPTY):
                if good := _look(slot, block, disk):
                    found.append(good)
                else:
                    bad.append(slot)
    return found, bad


def check(path: Path, disk: str = wire.DISKS[0]) -> DiskLog:
    """Reads the log of the image of `disk`; one without a log has `highest` 0.

    Raises OSError, or CalledProcessError for a qcow2 image that qemu-img cannot read.
    """
    number = wire.DISKS.index(disk)
    with path.open("rb") as file:
        is_raw = file.read(len(_QCOW2)) != _QCOW2
    if is_raw:
        return _judge(*_scan(path, number))
    with tempfile.TemporaryDirectory(prefix="sterna-disklog-") as folder:
        raw = Path(folder) / "raw"
        argv = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(path), str(raw)]
        subprocess.run(argv, check=True, capture_output=True)
        return _judge(*_scan(raw, number))


def _judge(found: list[_Found], bad: list[int]) -> DiskLog:
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
