"""QEMU's migration stream made small at the source, and made whole at the target.

    Encoder.feed -> pack -> the link -> unpack -> Decoder.apply

Encoder and Decoder are ordered and remember pages; `pack` and `unpack` remember nothing and may run
in several threads. What comes out is what went in, byte for byte, whatever it was.
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
from sterna.carrier.blocks import MAX_BLOCK, pack, unpack
from sterna.carrier.frames import Buffer
from sterna.carrier.measure import CodecStats
from sterna.carrier.pages import NONE, WORDS, Index, Keys, Rows, capacity, store
from sterna.carrier.stream import (
    MAX_SEGMENTS,
    PAGE,
    STRIDES,
    Parser,
    Segment,
    Segments,
)
from sterna.errors.carrier import BadBlock

__all__ = ["BATCH_BYTES", "MAX_BLOCK", "CodecStats", "Decoder", "Encoder", "pack", "unpack"]

_MARGIN = 2 * PAGE  # beyond the stream, so that a page may be looked at from every byte
_ROOM = 64 << 10  # bytes; with less the batch is closed, a read should be worth its call
_CHUNK = 128  # pages that are compared at once: they and their rows stay in a core's own cache
_SPARSE = 48  # words; more are told as a whole XOR
_DENSE = 400  # words; more are told as a new page
_SAMPLE = np.arange(5, WORDS, 32)  # words of a page that its print is made of
_ODD = np.random.default_rng(1).integers(1, 1 << 63, len(_SAMPLE), np.uint64) * np.uint64(2) + 1


class Encoder:
    """At the source. For one connection of QEMU's; not thread-safe."""

    def __init__(self, *, cache_bytes: int) -> None:
        self.stats = CodecStats()
        self._buffer = bytearray(BATCH_BYTES + _MARGIN)
        self._start = 0  # not parsed before here
        self._end = 0
        self._told = 0  # bytes at the start that are in a batch already
        self._parser = Parser()
        self._found = Segments()
        self._pages = Pages(cache_bytes)

    def room(self) -> memoryview:
        """Where the next bytes of the stream may be put; then call `received`. Never empty."""
        return memoryview(self._buffer)[self._end : BATCH_BYTES]

    def received(self, size: int) -> list[Batch]:
        """`size` bytes were put into `room`. Returns what has become complete."""
        self._end += size
        self.stats.stream_bytes += size
        batches = []
        while True:
            at = self._parser.parse(self._buffer, self._start, self._end, self._found)
            self._start = at
            full = len(self._found.kinds) >= MAX_SEGMENTS
            if not full and BATCH_BYTES - self._end >= _ROOM:
                return batches
            batches += self._close()
            if not full:
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
        begin = max(self._start, self._told)
        if self._end > begin:
            self._found.add(Segment.LITERAL, begin, self._end - begin)
        rest = self._end - self._start
        batches = self._close()
        self._told = rest
        return batches

    def _close(self) -> list[Batch]:
        found, self._found = self._found, Segments()
        if self._told:
            found.drop(self._told)
        self._told = max(0, self._told - self._start)
        batches = [self._batch(found)] if found.kinds else []
        rest = self._end - self._start
        self._buffer[:rest] = self._buffer[self._start : self._end]
        self._start, self._end = 0, rest
        return batches

    def _batch(self, found: Segments) -> Batch:
        kinds = np.array(found.kinds, np.uint8)
        starts = np.array(found.starts, np.int64)
        counts = np.array(found.counts, np.int64)
        keys = np.array(found.keys, np.int64)
        data = memoryview(self._buffer)
        literals = b"".join(
            data[start : start + count]
            for kind, start, count in zip(found.kinds, found.starts, found.counts, strict=True)
            if not kind
        )
        at = places(kinds, starts, counts)
        headers = overlapping_words(self._buffer)[at.words].astype(np.uint64)
        batch = Batch(
            kinds=kinds,
            counts=counts.astype(np.uint32),
            headers=headers,
            literals=literals,
            **self._pages.encode(self._buffer, at.pages, _keys(kinds, counts, keys, headers)),
        )
        self.stats.count(batch)
        return batch


def _keys(
    kinds: NDArray[np.uint8], counts: NDArray[np.int64], keys: Keys, headers: NDArray[np.uint64]
) -> Keys:
    """Of each page: its block's number and its own; of a run, from the records' words."""
    pages = (kinds == Segment.PAGES) | (kinds == Segment.BARE)
    found = np.repeat(keys[pages], counts[pages])
    run = np.repeat(kinds[pages] == Segment.PAGES, counts[pages])
    worded = (kinds == Segment.PAGES) | (kinds == Segment.ZEROS)
    of_pages = np.repeat(kinds[worded] == Segment.PAGES, counts[worded])
    found[run] |= (headers[of_pages] >> np.uint64(12)).astype(np.int64) & ((1 << 40) - 1)
    return found


class Pages:
    """What the source remembers of pages, and how it tells new ones."""

    def __init__(self, cache_bytes: int) -> None:
        self.rows = store(cache_bytes)
        self._words = self.rows.reshape(-1)
        self._index = Index(capacity(cache_bytes))
        self._was = np.empty((_CHUNK, WORDS), np.uint64)
        self._differs = np.empty((_CHUNK, WORDS), bool)

    def encode(self, data: bytearray, at: NDArray[np.int64], keys: Keys) -> dict[str, object]:
        """Fields of a batch for the pages at `at` in `data`; the rows are brought up to date."""
        view = overlapping(data)
        contents = np.full(len(at), Content.FRESH, np.uint8)
        rows = self._index.find(keys)
        known = np.flatnonzero(rows >= 0)
        words: list[NDArray[np.uint16]] = [np.empty(0, np.uint16)]
        positions: list[NDArray[np.uint16]] = [np.empty(0, np.uint16)]
        values: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        dense: list[Rows] = [np.empty((0, WORDS), np.uint64)]
        for begin in range(0, len(known), _CHUNK):
            chunk = known[begin : begin + _CHUNK]
            size = len(chunk)
            now = view[at[chunk]].view(np.uint64)
            row = rows[chunk]
            was = _taken(self.rows, row, self._was[:size])
            differs = np.not_equal(now, was, out=self._differs[:size])
            changed = _sums(differs)
            contents[chunk] = np.select(
                [changed == 0, changed <= _SPARSE, changed <= _DENSE],
                [Content.SAME, Content.SPARSE, Content.DENSE],
                Content.FRESH,
            )
            many = changed > _SPARSE
            if many.any():
                differs[many] = False
                middle = np.flatnonzero(many & (changed <= _DENSE))
                dense.append(now[middle] ^ was[middle])
                self.rows[row[middle]] = now[middle]
            flat = np.flatnonzero(differs)
            if len(flat):
                new = now.reshape(-1)[flat]
                words.append(changed[(changed > 0) & ~many].astype(np.uint16))
                positions.append((flat % WORDS).astype(np.uint16))
                values.append(new ^ was.reshape(-1)[flat])
                self._words[row[flat // WORDS] * WORDS + flat % WORDS] = new
        fresh = np.flatnonzero(contents == Content.FRESH)
        sources, content = self._fresh(view, at, keys, fresh, rows, contents)
        return {
            "contents": contents,
            "rows": rows[contents != Content.ZERO].astype(np.uint32),
            "sources": sources,
            "words": np.concatenate(words),
            "positions": np.concatenate(positions),
            "values": np.concatenate(values),
            "dense": np.concatenate(dense),
            "fresh": content,
        }

    def _fresh(
        self,
        view: NDArray[np.uint8],
        at: NDArray[np.int64],
        keys: Keys,
        fresh: NDArray[np.int64],
        rows: NDArray[np.int64],
        contents: NDArray[np.uint8],
    ) -> tuple[NDArray[np.uint32], Rows]:
        """Pages that must be told in full, unless they are zero or like another."""
        none = np.empty(0, np.uint32), np.empty((0, WORDS), np.uint64)
        if not len(fresh):
            return none
        full = view[at[fresh]].view(np.uint64)
        sample = full[:, _SAMPLE]
        prints = (sample * _ODD).sum(axis=1, dtype=np.uint64)
        zero = prints == 0
        if zero.any():
            zero[zero] = ~full[zero].any(axis=1)
            contents[fresh[zero]] = Content.ZERO
        prints ^= prints >> np.uint64(29)
        of = self._copies(full, prints, zero)
        copies = of >= 0
        twins = self._twins(full, prints, zero | copies)
        contents[fresh[copies]] = Content.COPY
        contents[fresh[twins >= 0]] = Content.TWIN
        sources = np.where(copies, of, fresh[twins])
        told = copies | (twins >= 0)
        new = (rows[fresh] < 0) & ~zero
        rows[fresh[new]] = self._index.insert(keys[fresh[new]])
        kept = (rows[fresh] >= 0) & ~zero
        if kept.any():
            self.rows[rows[fresh[kept]]] = full if kept.all() else full[kept]
            self._index.remember(prints[kept], rows[fresh[kept]])
        rest = ~(told | zero)
        return sources[told].astype(np.uint32), full if rest.all() else full[rest]

    def _copies(
        self, full: Rows, prints: NDArray[np.uint64], zero: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """The row that holds the same bytes as each of these pages, or -1."""
        of = self._index.twins(prints)
        of[zero] = -1
        maybe = np.flatnonzero(of >= 0)
        for begin in range(0, len(maybe), _CHUNK):
            chunk = maybe[begin : begin + _CHUNK]
            same = (full[chunk] == self.rows[of[chunk]]).all(axis=1)
            of[chunk[~same]] = -1
        return of

    def _twins(
        self, full: Rows, prints: NDArray[np.uint64], told: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """The earlier one of these pages that holds the same bytes, or -1."""
        twins = np.full(len(full), -1, np.int64)
        left = np.flatnonzero(~told)
        _, first, which = np.unique(prints[left], return_index=True, return_inverse=True)
        if len(first) == len(left):
            return twins
        of = left[first[which]]
        later = of != left
        left, of = left[later], of[later]
        same = (full[left] == full[of]).all(axis=1)
        twins[left[same]] = of[same]
        return twins


def _taken(rows: Rows, which: NDArray[np.int64], out: Rows) -> Rows:
    """These rows: as they lie if they are neighbours, else copied to `out`."""
    first, last = int(which[0]), int(which[-1])
    if last - first == len(which) - 1 and bool((which[1:] > which[:-1]).all()):
        return rows[first : last + 1]
    return rows.take(which, axis=0, out=out, mode="clip")


def _sums(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are set in each row of WORDS, eight at a time."""
    by_byte = flags.view(np.uint64).sum(axis=1, dtype=np.uint64)  # each byte is at most 64
    return by_byte.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)


class Decoder:
    """At the target. For one connection of QEMU's; not thread-safe."""

    def __init__(self, *, cache_bytes: int) -> None:
        self.rows = store(cache_bytes)
        self._words = self.rows.reshape(-1)
        self._buffer = bytearray(BATCH_BYTES + _MARGIN)
        self._view = overlapping(self._buffer)
        self._headers = overlapping_words(self._buffer)
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
        copy = self.rows[sources[copied]]
        sparse = rows[contents == Content.SPARSE]
        if len(sparse):
            flat = np.repeat(sparse * WORDS, batch.words) + batch.positions
            self._words[flat] ^= batch.values
        dense = rows[contents == Content.DENSE]
        if len(dense):
            self.rows[dense] ^= batch.dense
        known = np.flatnonzero(
            (contents >= Content.SAME) & (contents <= Content.DENSE)
        )
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
