"""How the target makes pages of what it is told; the opposite of `telling`.

Trusts nothing: what names a row or page that is not there is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sterna.carrier.batch import (
    BATCH_BYTES,
    Batch,
    Content,
    Places,
    overlapping,
    overlapping_words,
    places,
)
from sterna.carrier.frames import Buffer
from sterna.carrier.pages import NONE, WORDS, Rows, store
from sterna.carrier.segments import PAGE, STRIDES, Segment
from sterna.errors.carrier import BadBlock

_CHUNK = 128  # pages that are copied at once: they stay in a core's own cache
_MARGIN = PAGE  # beyond the stream, so that a page may begin at every byte


class Decoder:
    """At the target. For one connection of QEMU's; not thread-safe."""

    def __init__(self, *, cache_bytes: int) -> None:
        self.rows = store(cache_bytes)
        self._words = self.rows.reshape(-1)
        self._buffer = bytearray(BATCH_BYTES + _MARGIN)
        self._view = overlapping(self._buffer)
        self._headers = overlapping_words(self._buffer, ">u8")
        self._bytes = np.frombuffer(self._buffer, np.uint8)

    def apply(self, batch: Batch) -> list[Buffer]:
        """The bytes of the stream, in order; valid until the next call. Raises BadBlock."""
        if not len(batch.headers) and not len(batch.contents):
            return [batch.literals]
        rows = self._checked(batch)
        counts = batch.counts.astype(np.int64)
        sizes = counts * STRIDES[batch.kinds]
        ends = np.cumsum(sizes)
        at = places(batch.kinds, ends - sizes, counts)
        self._literals(batch, ends)
        self._headers[at.words] = batch.headers
        self._bytes[at.fills] = 0
        self._contents(batch, at, rows)
        return [memoryview(self._buffer)[: int(ends[-1])]]

    def _literals(self, batch: Batch, ends: NDArray[np.int64]) -> None:
        begin = 0
        out = memoryview(self._buffer)
        which = np.flatnonzero(batch.kinds == Segment.LITERAL)
        for end, count in zip(ends[which].tolist(), batch.counts[which].tolist(), strict=True):
            out[end - count : end] = batch.literals[begin : begin + count]
            begin += count

    def _contents(self, batch: Batch, at: Places, rows: NDArray[np.int64]) -> None:
        contents = batch.contents
        copies = contents >= Content.COPY
        sources = np.zeros(len(contents), np.int64)
        sources[copies] = batch.sources
        copied = np.flatnonzero(contents == Content.COPY)
        sparse = rows[contents == Content.SPARSE]
        if len(sparse):
            flat = np.repeat(sparse * WORDS, batch.words) + batch.positions
            self._words[flat] ^= batch.values
        dense = rows[contents == Content.DENSE]
        if len(dense):
            self.rows[dense] ^= batch.dense
        copy = self.rows[sources[copied]]  # before rows get other pages
        known = np.flatnonzero((contents >= Content.SAME) & (contents <= Content.DENSE))
        for chunk in _chunks(known):
            self._view[at.pages[chunk]] = self.rows[rows[chunk]].view(np.uint8)
        for which, pages in (
            (np.flatnonzero(contents == Content.FRESH), batch.fresh),
            (np.flatnonzero(contents == Content.PLAIN), batch.plain),
            (copied, copy),
        ):
            self._put(at.pages[which], rows[which], pages)
        twins = np.flatnonzero(contents == Content.TWIN)
        if len(twins):
            pages = self._view[at.pages[sources[twins]]].view(np.uint64)
            self._put(at.pages[twins], rows[twins], pages)
        zeros = at.pages[contents == Content.ZERO]
        if len(zeros):
            self._view[zeros] = 0

    def _put(self, at: NDArray[np.int64], rows: NDArray[np.int64], pages: Rows) -> None:
        """These pages into the stream, and into their rows."""
        if not len(at):
            return
        self._view[at] = pages.view(np.uint8)
        kept = rows != NONE
        if kept.all():
            self.rows[rows] = pages
        elif kept.any():
            self.rows[rows[kept]] = pages[kept]

    def _checked(self, batch: Batch) -> NDArray[np.int64]:
        """The row of each page, NONE if it has none. Raises BadBlock for what we do not have."""
        contents = batch.contents
        rows = np.full(len(contents), NONE, np.int64)
        rows[contents != Content.ZERO] = batch.rows
        known = (contents >= Content.SAME) & (contents <= Content.DENSE)
        if ((rows >= len(self.rows)) & (known | (rows != NONE))).any():
            raise BadBlock(reason="it names a row that is not there")
        copies = contents[contents >= Content.COPY] == Content.COPY
        if (batch.sources[copies] >= len(self.rows)).any():
            raise BadBlock(reason="it copies a row that is not there")
        twins = np.flatnonzero(contents == Content.TWIN)
        of = batch.sources[~copies].astype(np.int64)
        if (of >= twins).any() or (contents[of] == Content.TWIN).any():
            raise BadBlock(reason="it copies a page that is not there")
        return rows


def _chunks(which: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for begin in range(0, len(which), _CHUNK):
        yield which[begin : begin + _CHUNK]
