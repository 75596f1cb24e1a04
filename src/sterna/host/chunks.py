"""Files as chunks with digests: by these two hosts find out what the other one lacks.

A chunk of zeroes has the digest `HOLE` and is never sent, and what the file system knows to be a
hole is not even read. Within a chunk, blocks of zeroes are left out, so that a thin file stays thin
to the block; what is left is compressed if that makes it smaller. The root is one digest of the size and of all chunks: two files with the same root
have the same content. Blocking functions on file descriptors; the file is not written meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator

import zstandard

from sterna.units import KIB, MIB

CHUNK = 4 * MIB  # a request's body; a digest of it costs a few ms
BLOCK = 4 * KIB  # what file systems allocate by
DIGEST_BYTES = 32
LEVEL = 1  # of zstd: some 500 MB/s a core, and random data is found out at twice that
HOLE = bytes(DIGEST_BYTES)  # digest of any number of zeroes: no SHA-256 is known that is zero
_ZEROES = bytes(CHUNK)
_NO_BLOCK = bytes(BLOCK)


def count(size: int) -> int:
    """How many chunks a file of `size` bytes has."""
    return -(-size // CHUNK)


def length(size: int, chunk: int) -> int:
    """Bytes of chunk number `chunk`: the last one may be shorter."""
    return min(CHUNK, size - chunk * CHUNK)


def read(fd: int, size: int, chunk: int) -> bytes:
    """The content of one chunk. OSError, also if the file is shorter than `size`."""
    wanted, offset = length(size, chunk), chunk * CHUNK
    data = os.pread(fd, wanted, offset)
    while len(data) < wanted:
        more = os.pread(fd, wanted - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the file ends too early")
        data += more
    return data


def digest(data: bytes) -> bytes:
    """SHA-256, which CPUs of today compute in hardware; `HOLE` for zeroes."""
    if data == (_ZEROES if len(data) == len(_ZEROES) else _ZEROES[: len(data)]):
        return HOLE
    return hashlib.sha256(data).digest()


def filled(fd: int, size: int, first: int, last: int) -> Iterator[int]:
    """Those chunks from `first` up to but not `last` that hold more than holes, in order."""
    chunk, last = first, min(last, count(size))
    while chunk < last:
        offset = next_data(fd, chunk * CHUNK)
        if offset is None or offset >= size:
            return
        chunk = max(chunk, offset // CHUNK)
        if chunk < last:
            yield chunk
        chunk += 1


def next_data(fd: int, offset: int) -> int | None:
    """Where data begins from `offset` on; None if only holes follow."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return offset  # a file system without holes
        raise


def held(fd: int, size: int, first: int, last: int) -> Iterator[bytes]:
    """The digests of the chunks from `first` up to but not `last`, in order."""
    chunk = first
    for found in filled(fd, size, first, last):
        yield from (HOLE for _ in range(chunk, found))
        yield digest(read(fd, size, found))
        chunk = found + 1
    yield from (HOLE for _ in range(chunk, min(last, count(size))))


class Root:
    """One digest of a whole file: feed it the digests of all chunks in order."""

    def __init__(self, size: int) -> None:
        self._hash = hashlib.sha256(b"sterna file 1\0" + size.to_bytes(8, "big"))

    def add(self, digests: bytes) -> None:
        """The digests that come next."""
        self._hash.update(digests)

    @property
    def text(self) -> str:
        """In hexadecimal."""
        return self._hash.hexdigest()


# ---- one chunk on its way -------------------------------------------------------------------


def pack(data: bytes) -> tuple[int, bytes]:
    """Which blocks of a chunk are not zero, as bits from the first on, and these blocks."""
    blocks, kept = 0, []
    for number, offset in enumerate(range(0, len(data), BLOCK)):
        block = data[offset : offset + BLOCK]
        if block != (_NO_BLOCK if len(block) == BLOCK else _NO_BLOCK[: len(block)]):
            blocks |= 1 << number
            kept.append(block)
    return blocks, data if len(kept) * BLOCK >= len(data) else b"".join(kept)


def squeeze(data: bytes) -> bytes:
    """`data`, compressed if that saves anything worth it; shorter than `data`, or `data` itself."""
    squeezed = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    return squeezed if len(squeezed) < len(data) * 15 // 16 else data


def spread(data: bytes, size: int) -> bytes:
    """What was squeezed, `size` bytes. ValueError if it is anything else; never takes more room."""
    if len(data) == size:
        return data
    try:
        told = zstandard.get_frame_parameters(data).content_size
        found = zstandard.ZstdDecompressor().decompress(data, size) if told == size else b""
    except zstandard.ZstdError as error:
        raise ValueError(f"it is not {size} bytes: {error}") from error
    if len(found) != size:
        raise ValueError(f"it is not {size} bytes")
    return found


def runs(blocks: int, size: int) -> Iterator[tuple[int, int]]:
    """Offset and length within a chunk of `size` bytes of each run of `blocks`, in order.

    ValueError if the chunk has not so many blocks.
    """
    if blocks < 0 or blocks >> -(-size // BLOCK):
        raise ValueError(f"a chunk of {size} bytes has fewer blocks")
    number = 0
    while rest := blocks >> number:
        number += (rest & -rest).bit_length() - 1
        rest = blocks >> number
        run = (~rest & (rest + 1)).bit_length() - 1
        offset = number * BLOCK
        yield offset, min(run * BLOCK, size - offset)
        number += run
