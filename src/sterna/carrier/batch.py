"""A stretch of QEMU's stream as the codec sees it, and where its parts lie in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sterna.carrier.pages import WORDS, Rows
from sterna.carrier.segments import PAGE, STRIDES, Segment

BATCH_BYTES = 2 << 20  # of stream that one batch stands for, at most


class Content(IntEnum):
    """How the content of a page is told."""

    ZERO = 0
    SAME = 1  # as its row
    SPARSE = 2  # as its row but for a few words
    DENSE = 3  # as its row but for many words
    FRESH = 4  # told in full, worth compressing
    PLAIN = 5  # told in full, not worth compressing
    COPY = 6  # as another row was before this batch
    TWIN = 7  # as an earlier page of this batch


@dataclass(slots=True, kw_only=True)
class Batch:
    """All arrays are in the order of the stream."""

    kinds: NDArray[np.uint8]  # of segments
    counts: NDArray[np.uint32]  # of segments
    headers: NDArray[np.uint64]  # of records with a word: PAGES and ZEROS
    literals: bytes
    contents: NDArray[np.uint8]  # of pages: PAGES and BARE
    rows: NDArray[np.uint32]  # of pages that are not ZERO; NONE: not kept
    sources: NDArray[np.uint32]  # of pages that are COPY (a row) or TWIN (number of a page)
    words: NDArray[np.uint16]  # of pages that are SPARSE: how many words changed
    positions: NDArray[np.uint16]  # of those words
    values: NDArray[np.uint64]  # XOR of old and new
    dense: Rows = field(default_factory=lambda: np.empty((0, WORDS), np.uint64))  # XOR
    fresh: Rows = field(default_factory=lambda: np.empty((0, WORDS), np.uint64))
    plain: Rows = field(default_factory=lambda: np.empty((0, WORDS), np.uint64))


@dataclass(frozen=True, slots=True)
class Places:
    """Where things begin, in bytes."""

    words: NDArray[np.int64]  # of PAGES and ZEROS, in order
    pages: NDArray[np.int64]  # of contents
    fills: NDArray[np.int64]  # the byte after the word of a zero page


def places(
    kinds: NDArray[np.uint8], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> Places:
    """Of all records in segments that begin at `starts`."""
    records = kinds != Segment.LITERAL
    kinds, starts, counts = kinds[records], starts[records], counts[records]
    total = int(counts.sum())
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    kind = np.repeat(kinds, counts)
    begin = np.repeat(starts, counts) + within * STRIDES[kind]
    zeros = kind == Segment.ZEROS
    bare = kind == Segment.BARE
    return Places(
        words=begin[~bare],
        pages=np.where(bare, begin, begin + 8)[~zeros],
        fills=begin[zeros] + 8,
    )


def overlapping(buffer: bytearray) -> NDArray[np.uint8]:
    """(len - 4095, 4096): the page that begins at each byte."""
    return np.ndarray((len(buffer) - PAGE + 1, PAGE), np.uint8, buffer, 0, (1, 1))


def overlapping_words(buffer: bytearray, kind: str) -> NDArray[np.uint64]:
    """(len - 7,): the word of this byte order that begins at each byte."""
    return np.ndarray((len(buffer) - 7,), kind, buffer, 0, (1,))
