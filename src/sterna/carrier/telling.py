"""How the source tells pages: as little of each as the target needs to know it.

Compares each page with what its row holds, keeps the rows up to date, and finds pages that are zero
or like another. Works on all pages of a batch together; no Python object is made for a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.carrier.batch import Content, overlapping, overlapping_words
from sterna.carrier.pages import WORDS, Index, Keys, Rows, capacity, store
from sterna.carrier.segments import RECORD

_CHUNK = 128  # pages that are compared at once: they and their rows fit a core's own cache
_SPARSE = 48  # words; more are told as a whole XOR
_DENSE = 400  # words; more are told as a new page
_SAMPLE = slice(5, WORDS, 32)  # words of a page that its print is made of
_ODD = np.random.default_rng(1).integers(1, 1 << 63, WORDS // 32, np.uint64) * np.uint64(2)
_ODD += np.uint64(1)
_BY_CHANGED = np.full(WORDS + 1, Content.FRESH, np.uint8)
_BY_CHANGED[: _DENSE + 1] = Content.DENSE
_BY_CHANGED[: _SPARSE + 1] = Content.SPARSE
_BY_CHANGED[0] = Content.SAME
# members of an enum are slow to get
_ZERO, _DENSE_KIND, _FRESH = int(Content.ZERO), int(Content.DENSE), int(Content.FRESH)
_COPY, _TWIN = int(Content.COPY), int(Content.TWIN)


@dataclass(frozen=True, slots=True)
class Told:
    """Fields of a batch, for its pages."""

    contents: NDArray[np.uint8]
    rows: NDArray[np.uint32]
    sources: NDArray[np.uint32]
    words: NDArray[np.uint16]
    positions: NDArray[np.uint16]
    values: NDArray[np.uint64]
    dense: Rows
    fresh: Rows


class _Changes:
    """Words that changed in pages that both ends have, gathered chunk by chunk."""

    def __init__(self) -> None:
        self.words = [np.empty(0, np.uint16)]
        self.positions = [np.empty(0, np.uint16)]
        self.values = [np.empty(0, np.uint64)]
        self.dense = [np.empty((0, WORDS), np.uint64)]


class Pages:
    """What the source remembers of pages, and the best way to tell new ones."""

    def __init__(self, cache_bytes: int) -> None:
        self.rows = store(cache_bytes)
        self._words = self.rows.reshape(-1)
        self._index = Index(capacity(cache_bytes))
        self._was = np.empty((_CHUNK, WORDS), np.uint64)
        self._differs = np.empty((_CHUNK, WORDS), bool)

    def tell(self, data: bytearray, at: NDArray[np.int64], keys: Keys) -> Told:
        """The pages at `at` in `data`. The rows are brought up to date."""
        contents = np.full(len(at), _FRESH, np.uint8)
        rows = self._index.find(keys)
        known = np.flatnonzero(rows >= 0)
        changes = _Changes()
        for begin in range(0, len(known), _CHUNK):
            chunk = known[begin : begin + _CHUNK]
            contents[chunk] = self._compare(data, at[chunk], rows[chunk], changes)
        fresh = np.flatnonzero(contents == _FRESH)
        sources = np.empty(0, np.uint32)
        full = np.empty((0, WORDS), np.uint64)
        if len(fresh):
            full = overlapping(data)[at[fresh]].view(np.uint64)
            kinds, kept, sources = self._fresh(full, fresh, keys[fresh], rows[fresh])
            contents[fresh] = kinds
            rows[fresh] = kept
            told = kinds == _FRESH
            full = full if told.all() else full[told]
        return Told(
            contents=contents,
            rows=rows[contents != _ZERO].astype(np.uint32),
            sources=sources,
            words=np.concatenate(changes.words),
            positions=np.concatenate(changes.positions),
            values=np.concatenate(changes.values),
            dense=np.concatenate(changes.dense),
            fresh=full,
        )

    def _compare(
        self, data: bytearray, at: NDArray[np.int64], rows: NDArray[np.int64], changes: _Changes
    ) -> NDArray[np.uint8]:
        """Pages at `at` with their rows: how each is told. Rows get what changed in them."""
        size = len(at)
        first = int(at[0])
        if int(at[-1]) - first == (size - 1) * RECORD and (np.diff(at) == RECORD).all():
            now = np.ndarray((size, WORDS), np.uint64, data, first, (RECORD, 8))
        else:
            now = overlapping(data)[at].view(np.uint64)
        first = int(rows[0])
        if int(rows[-1]) - first == size - 1 and (np.diff(rows) == 1).all():
            was = self.rows[first : first + size]
        else:
            was = self.rows.take(rows, axis=0, out=self._was[:size], mode="clip")
        differs = np.not_equal(now, was, out=self._differs[:size])
        changed = _sums(differs)
        kinds = _BY_CHANGED[changed]
        many = changed > _SPARSE
        if many.any():
            differs[many] = False
            dense = np.flatnonzero(kinds == _DENSE_KIND)
            changes.dense.append(now[dense] ^ was[dense])
            self.rows[rows[dense]] = now[dense]
        flat = np.flatnonzero(differs)
        if len(flat):
            page, position = np.divmod(flat, WORDS)
            new = overlapping_words(data, "<u8")[at[page] + position * 8]
            places = rows[page] * WORDS + position
            changes.words.append(changed[(changed > 0) & ~many].astype(np.uint16))
            changes.positions.append(position.astype(np.uint16))
            changes.values.append(new ^ self._words[places])
            self._words[places] = new
        return kinds

    def _fresh(
        self, full: Rows, numbers: NDArray[np.int64], keys: Keys, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint32]]:
        """How new pages are told, their rows, and the sources of those that are like another.

        `numbers`: of these pages in the batch. Pages without a row get one, if it is worth it.
        """
        kinds = np.full(len(full), _FRESH, np.uint8)
        prints = (full[:, _SAMPLE] * _ODD).sum(axis=1, dtype=np.uint64)
        maybe = np.flatnonzero(prints == 0)
        if len(maybe):
            kinds[maybe[~full[maybe].any(axis=1)]] = _ZERO
        prints ^= prints >> np.uint64(29)
        sources = self._copies(full, prints, kinds)
        kinds[sources >= 0] = _COPY
        twins = _twins(full, prints, np.flatnonzero(kinds == _FRESH))
        kinds[twins >= 0] = _TWIN
        sources = np.where(kinds == _TWIN, numbers[twins], sources)
        new = np.flatnonzero((rows < 0) & (kinds != _ZERO))
        rows[new] = self._index.insert(keys[new])
        kept = (rows >= 0) & (kinds != _ZERO)
        if kept.all():
            self.rows[rows] = full
            self._index.remember(prints, rows)
        elif kept.any():
            self.rows[rows[kept]] = full[kept]
            self._index.remember(prints[kept], rows[kept])
        return kinds, rows, sources[kinds >= _COPY].astype(np.uint32)

    def _copies(
        self, full: Rows, prints: NDArray[np.uint64], kinds: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """The row that holds the same bytes as each of these pages, or -1."""
        rows = self._index.twins(prints)
        rows[kinds == _ZERO] = -1
        maybe = np.flatnonzero(rows >= 0)
        for begin in range(0, len(maybe), _CHUNK):
            chunk = maybe[begin : begin + _CHUNK]
            same = (full[chunk] == self.rows[rows[chunk]]).all(axis=1)
            rows[chunk[~same]] = -1
        return rows


def _twins(full: Rows, prints: NDArray[np.uint64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each page the earlier one `among` them that holds the same bytes, or -1."""
    twins = np.full(len(full), -1, np.int64)
    _, first, which = np.unique(prints[among], return_index=True, return_inverse=True)
    if len(first) == len(among):
        return twins
    of = among[first[which]]
    later = of != among
    among, of = among[later], of[later]
    same = (full[among] == full[of]).all(axis=1)
    twins[among[same]] = of[same]
    return twins


def _sums(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are set in each row of WORDS, eight at a time."""
    by_byte = flags.view(np.uint64).sum(axis=1, dtype=np.uint64)  # each byte is at most 64
    sums: NDArray[np.int64] = by_byte.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)
    return sums
