"""QEMU's migration stream made small at the source, and made whole at the target.

    Encoder.feed -> pack -> the link -> unpack -> Decoder.apply

Encoder and Decoder are ordered and remember pages; `pack` and `unpack` remember nothing and may run
in several threads. What comes out is what went in, byte for byte, whatever it was.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sterna.carrier.batch import BATCH_BYTES, Batch, overlapping_words, places
from sterna.carrier.blocks import MAX_BLOCK, pack, unpack
from sterna.carrier.decoder import Decoder
from sterna.carrier.frames import Buffer
from sterna.carrier.measure import CodecStats
from sterna.carrier.pages import Keys
from sterna.carrier.segments import MAX_SEGMENTS, PAGE, PAGE_BITS, Segment, Segments
from sterna.carrier.stream import Parser
from sterna.carrier.telling import Pages

__all__ = ["BATCH_BYTES", "MAX_BLOCK", "CodecStats", "Decoder", "Encoder", "pack", "unpack"]

_MARGIN = 2 * PAGE  # beyond the stream, so that a page may be looked at from every byte
_ROOM = 64 << 10  # bytes; with less the batch is closed, a read should be worth its call


class Encoder:
    """At the source. For one connection of QEMU's; not thread-safe."""

    def __init__(self, *, cache_bytes: int) -> None:
        self.stats = CodecStats()
        self.pages = Pages(cache_bytes)
        self._buffer = bytearray(BATCH_BYTES + _MARGIN)
        self._start = 0  # parsed up to here
        self._end = 0
        self._told = 0  # bytes before here are in a batch already
        self._parser = Parser()
        self._found = Segments()

    def room(self) -> memoryview:
        """Where the next bytes of the stream may be put; then call `received`. Never empty."""
        return memoryview(self._buffer)[self._end : BATCH_BYTES]

    def received(self, size: int) -> list[Batch]:
        """`size` bytes were put into `room`. Returns what has become complete."""
        self._end += size
        self.stats.stream_bytes += size
        batches: list[Batch] = []
        while True:
            self._start = self._parser.parse(self._buffer, self._start, self._end, self._found)
            is_full = len(self._found.kinds) >= MAX_SEGMENTS
            if is_full or BATCH_BYTES - self._end < _ROOM:
                batches += self._close()
            if not is_full:
                return batches

    def feed(self, data: Buffer) -> list[Batch]:
        """The next bytes of the stream. Returns what has become complete."""
        batches = []
        left = memoryview(data).cast("B")
        while left:
            room = self.room()
            size = min(len(left), len(room))
            room[:size] = left[:size]
            left = left[size:]
            batches += self.received(size)
        return batches

    def flush(self) -> list[Batch]:
        """All that was fed and is in no batch yet. A record that is cut here goes uncompressed."""
        if self._end > self._start:
            self._found.add(Segment.LITERAL, self._start, self._end - self._start)
        batches = self._close()
        self._told = self._end
        return batches

    def _close(self) -> list[Batch]:
        """All that was found becomes a batch; what is not parsed yet moves to the front."""
        found, self._found = self._found, Segments()
        found.drop(self._told)
        batches = [self._batch(found)] if found.kinds else []
        rest = self._end - self._start
        self._buffer[:rest] = self._buffer[self._start : self._end]
        self._told = max(0, self._told - self._start)
        self._start, self._end = 0, rest
        return batches

    def _batch(self, found: Segments) -> Batch:
        kinds = np.array(found.kinds, np.uint8)
        counts = np.array(found.counts, np.int64)
        at = places(kinds, np.array(found.starts, np.int64), counts)
        headers = overlapping_words(self._buffer, ">u8")[at.words].astype(np.uint64)
        keys = _keys(kinds, counts, np.array(found.keys, np.int64), headers)
        told = self.pages.tell(self._buffer, at.pages, keys)
        data = memoryview(self._buffer)
        literals = [
            data[start : start + count]
            for kind, start, count in zip(found.kinds, found.starts, found.counts, strict=True)
            if kind == 0
        ]
        batch = Batch(
            kinds=kinds,
            counts=counts.astype(np.uint32),
            headers=headers,
            literals=b"".join(literals),
            **{field.name: getattr(told, field.name) for field in dataclasses.fields(told)},
        )
        self.stats.count(batch)
        return batch


def _keys(
    kinds: NDArray[np.uint8], counts: NDArray[np.int64], keys: Keys, headers: NDArray[np.uint64]
) -> Keys:
    """Of each page: its block's number and its own; of a run, from the records' words."""
    kind = np.repeat(kinds, np.where(kinds == int(Segment.LITERAL), 0, counts))
    has_page = kinds & 1 == 1  # PAGES and BARE
    found = np.repeat(keys[has_page], counts[has_page])
    words = headers[kind[kind != int(Segment.BARE)] == int(Segment.PAGES)]
    numbers = (words >> np.uint64(12)).astype(np.int64) & ((1 << PAGE_BITS) - 1)
    found[kind[kind & 1 == 1] == int(Segment.PAGES)] |= numbers
    return found
