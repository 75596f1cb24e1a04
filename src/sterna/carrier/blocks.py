"""Batches as bytes for the link, and back.

A block is a version, the sizes of its parts (as they are and as they are stored), and the parts:
the plan (all that is small), literals, differences, pages that are compressed, pages that are not.
A part is a zstd frame if that is shorter. What arrives is not trusted: a frame is opened only if it
declares the size that the block's head declares, and that is bounded.
"""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from sterna.carrier.batch import BATCH_BYTES, Batch, Content
from sterna.carrier.frames import Buffer
from sterna.carrier.pages import WORDS, Rows
from sterna.carrier.segments import MAX_SEGMENTS, PAGE, STRIDES, Segment
from sterna.errors.carrier import BadBlock

VERSION = 1
PARTS = ("plan", "literals", "dense", "fresh", "plain")
HEAD = struct.Struct("<B" + "II" * len(PARTS))
MAX_SEGMENTS_SENT = MAX_SEGMENTS + 64  # those of flushes on top
MAX_PART = 2 * BATCH_BYTES
MAX_BLOCK = HEAD.size + 2 * BATCH_BYTES - (1 << 16)
_WORTH = 64  # bytes that compression must save
_SAMPLE = slice(3, WORDS, 12)  # words of a page that are looked at
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_FEW = 6  # zero bytes of the 344 in a sample; of random ones 1.3 are
_TRIED = 16  # pages


def pack(batch: Batch, level: int) -> bytes:
    """`batch` as a block. Several threads may pack at once; the work is done without the GIL."""
    if len(batch.fresh):
        _sort_out(batch)
    parts = (
        _plan(batch),
        batch.literals,
        _bytes(batch.dense),
        _bytes(batch.fresh),
    )
    stored: list[Buffer] = []
    sizes: list[int] = []
    for part in parts:
        kept = _compressed(part, level)
        stored.append(kept)
        sizes += (len(part), len(kept))
    plain = _bytes(batch.plain)
    return b"".join((HEAD.pack(VERSION, *sizes, len(plain), len(plain)), *stored, plain))


def _bytes(pages: Rows) -> memoryview:
    return pages.reshape(-1).view(np.uint8).data


def unpack(block: Buffer) -> Batch:
    """The batch in a block. Raises BadBlock; allocates no more than a few times BATCH_BYTES."""
    data = memoryview(block).cast("B")
    if not HEAD.size <= len(data) <= MAX_BLOCK:
        raise BadBlock(reason=f"its size is {len(data)}")
    version, *sizes = HEAD.unpack_from(data)
    if version != VERSION:
        raise BadBlock(reason=f"its version is {version}")
    full, stored = sizes[::2], sizes[1::2]
    if sum(stored) + HEAD.size != len(data) or max(full) > MAX_PART or sum(full) > 2 * MAX_PART:
        raise BadBlock(reason="its sizes do not fit")
    at = HEAD.size
    parts: list[Any] = []
    for size, kept in zip(full, stored, strict=True):
        parts.append(_opened(data[at : at + kept], size))
        at += kept
    return _read(*parts)


def sizes(block: Buffer) -> dict[str, tuple[int, int]]:
    """Size of each part of a block that `pack` made: in full, as stored."""
    _, *found = HEAD.unpack_from(block)
    return dict(zip(PARTS, zip(found[::2], found[1::2], strict=True), strict=True))


class _Contexts(threading.local):
    """zstd's contexts; each thread has its own."""

    def __init__(self) -> None:
        self.open = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._close: dict[int, zstandard.ZstdCompressor] = {}

    def close(self, level: int) -> zstandard.ZstdCompressor:
        found = self._close.get(level)
        if found is None:
            found = self._close[level] = zstandard.ZstdCompressor(level=level)
        return found


_contexts = _Contexts()


def _compressed(part: bytes | memoryview, level: int) -> bytes | memoryview:
    if len(part) < _WORTH:
        return part
    smaller = _contexts.close(level).compress(part)
    return smaller if len(smaller) < len(part) - len(part) // 64 else part


def _opened(part: memoryview, size: int) -> bytes | memoryview:
    if len(part) == size:
        return part
    try:
        frame = zstandard.get_frame_parameters(part)
        if frame.content_size != size:
            raise BadBlock(reason="a part is not of the size that it claims")
        found = _contexts.open.decompress(part, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadBlock(reason="a part cannot be decompressed") from error
    if len(found) != size:
        raise BadBlock(reason="a part is not of the size that it claims")
    return found


def _sort_out(batch: Batch) -> None:
    """Pages that look random go as they are, beside those that compress.

    A page looks random if no bit has the same value in all words that are sampled, and few of their
    bytes are zero. That says nothing of repetitions: of all such pages a few are tried.
    """
    sample = batch.fresh[:, _SAMPLE]
    ones = np.bitwise_or.reduce(sample, axis=1) == _ALL
    ones &= np.bitwise_and.reduce(sample, axis=1) == 0
    random = np.flatnonzero(ones)
    zeros = (sample[random].view(np.uint8) == 0).sum(axis=1)
    random = random[zeros <= _FEW]
    if not len(random):
        return
    tried = batch.fresh[random[:: max(1, len(random) // _TRIED)]]
    if len(_contexts.close(1).compress(_bytes(tried))) < tried.nbytes * 0.95:
        return
    contents = batch.contents.copy()
    contents[np.flatnonzero(contents == int(Content.FRESH))[random]] = int(Content.PLAIN)
    batch.contents = contents
    if len(random) == len(batch.fresh):
        batch.plain, batch.fresh = batch.fresh, batch.fresh[:0]
    else:
        others = np.ones(len(batch.fresh), bool)
        others[random] = False
        batch.plain, batch.fresh = batch.fresh[random], batch.fresh[others]


def _turned(values: NDArray[Any]) -> bytes:
    """Bytes of the same weight side by side: small numbers become runs of zeros."""
    return values.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()


def _steps(values: NDArray[Any]) -> NDArray[Any]:
    steps: NDArray[Any] = np.diff(values, prepend=values.dtype.type(0))
    return steps


def _plan(batch: Batch) -> bytes:
    return b"".join(
        (
            struct.pack("<I", len(batch.kinds)),
            batch.kinds.tobytes(),
            _turned(batch.counts),
            _turned(_steps(batch.headers)),
            batch.contents.tobytes(),
            _turned(_steps(batch.rows)),
            _turned(batch.sources),
            _turned(batch.words),
            _turned(batch.positions),
            _turned(batch.values),
        )
    )


class _Reader:
    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, count: int, kind: type[Any]) -> NDArray[Any]:
        size = np.dtype(kind).itemsize
        end = self._at + count * size
        if end > len(self._data):
            raise BadBlock(reason="its plan is cut")
        turned = np.frombuffer(self._data[self._at : end], np.uint8).reshape(size, count)
        self._at = end
        taken: NDArray[Any] = np.ascontiguousarray(turned.T).view(kind).reshape(count)
        return taken

    def finish(self) -> None:
        if self._at != len(self._data):
            raise BadBlock(reason="its plan is too long")


def _count(values: NDArray[Any], wanted: int) -> int:
    return int(np.count_nonzero(values == wanted))


def _read(
    plan: bytes | memoryview,
    literals: bytes | memoryview,
    dense: bytes | memoryview,
    fresh: bytes | memoryview,
    plain: bytes | memoryview,
) -> Batch:
    reader = _Reader(plan)
    segments = int(reader.take(1, np.uint32)[0])
    if segments > MAX_SEGMENTS_SENT:
        raise BadBlock(reason="it has too many segments")
    kinds = reader.take(segments, np.uint8)
    counts = reader.take(segments, np.uint32)
    if segments and kinds.max() > Segment.BARE:
        raise BadBlock(reason="it has segments of an unknown kind")
    each = counts.astype(np.int64)
    if int((STRIDES[kinds] * each).sum()) > BATCH_BYTES:
        raise BadBlock(reason="it stands for too much")
    totals = [int(each[kinds == kind].sum()) for kind in Segment]
    if totals[Segment.LITERAL] != len(literals):
        raise BadBlock(reason="its literals are not as many as it claims")
    headers = reader.take(totals[Segment.PAGES] + totals[Segment.ZEROS], np.uint64)
    pages = totals[Segment.PAGES] + totals[Segment.BARE]
    contents = reader.take(pages, np.uint8)
    if pages and contents.max() > Content.TWIN:
        raise BadBlock(reason="it has pages of an unknown kind")
    rows = reader.take(pages - _count(contents, Content.ZERO), np.uint32)
    copied = contents >= Content.COPY
    sources = reader.take(int(np.count_nonzero(copied)), np.uint32)
    words = reader.take(_count(contents, Content.SPARSE), np.uint16)
    changed = int(words.astype(np.int64).sum())
    positions = reader.take(changed, np.uint16)
    values = reader.take(changed, np.uint64)
    reader.finish()
    if changed and positions.max() >= WORDS:
        raise BadBlock(reason="it changes words outside a page")
    return Batch(
        kinds=kinds,
        counts=counts,
        headers=np.cumsum(headers, dtype=np.uint64),
        literals=bytes(literals),
        contents=contents,
        rows=np.cumsum(rows, dtype=np.uint32),
        sources=sources,
        words=words,
        positions=positions,
        values=values,
        dense=_rows(dense, _count(contents, Content.DENSE)),
        fresh=_rows(fresh, _count(contents, Content.FRESH)),
        plain=_rows(plain, _count(contents, Content.PLAIN)),
    )


def _rows(part: bytes | memoryview, count: int) -> Rows:
    if len(part) != count * PAGE:
        raise BadBlock(reason="its pages are not as many as it claims")
    return np.frombuffer(part, np.uint64).reshape(count, WORDS)
