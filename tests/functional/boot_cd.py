"""CDs that boot: their program reads the drive for ever and says on the serial port what is there."""

from __future__ import annotations

import struct
import subprocess
from functools import cache
from pathlib import Path

SECTOR = 2048
SOURCE = Path(__file__).with_name("cd_reader.S")
TEXT_AT = 21  # sector that the program reads


def make(path: Path, text: str, folder: Path, size: int = 22 * SECTOR) -> bytes:
    """A CD of `size` bytes whose program says `text`; what is behind it cannot be compressed.

    By the El Torito specification, without emulation: volume descriptors from sector 16 on, the
    catalogue in 19, the program in 20.
    """
    sectors = {
        16: b"\x01CD001\x01",
        17: b"\x00CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", 19),
        18: b"\xffCD001\x01",
        19: _catalogue(),
        20: _program(folder),
        TEXT_AT: text.encode() + b"\n\0",
    }
    image = b"".join(sectors.get(n, b"").ljust(SECTOR, b"\0") for n in range(TEXT_AT + 1))
    with path.open("wb") as file, Path("/dev/urandom").open("rb") as noise:
        file.write(image + noise.read(size - len(image)))
    return path.read_bytes()


def _catalogue() -> bytes:
    entry = bytearray(struct.pack("<BBH24sHBB", 1, 0, 0, b"", 0, 0x55, 0xAA))
    struct.pack_into("<H", entry, 28, -sum(struct.unpack("<16H", entry)) & 0xFFFF)
    return bytes(entry) + struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, 4, 20)


@cache
def _program(folder: Path) -> bytes:
    out = folder / "cd_reader"
    flags = "-m32 -nostdlib -static -Wl,-Ttext=0x7c00,--oformat=binary,-e,start,--build-id=none"
    subprocess.run(["gcc", *flags.split(), "-o", str(out), str(SOURCE)], check=True)
    return out.read_bytes()
