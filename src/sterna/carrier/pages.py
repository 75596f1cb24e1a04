"""What both ends remember of the pages that were sent: a table of rows of one page each.

The source alone decides what a row holds and says so; the target does as it is told. So both have
the same rows, and the rule by which one is replaced may change without the other end's knowing.
The size is fixed at the start, whatever the guest's size; memory is touched when it is first used.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from sterna.carrier.segments import PAGE, PAGE_BITS

WORDS = PAGE // 8
WAYS = 8  # rows in which a page may be
NONE = 0xFFFF_FFFF
_GHOSTS = 4  # pages remembered by name alone, for each row
_OVERHEAD = 8 + 1 + _GHOSTS + 8  # bytes of index beside each row: key, worth, ghosts, contents
_WORTH = 3  # hits that are counted
_AGING = 8  # so many pages must miss before a row that was hit is worth less

Rows = NDArray[np.uint64]  # (rows, WORDS)
Keys = NDArray[np.int64]


def capacity(cache_bytes: int) -> int:
    """Rows that fit in `cache_bytes`, index included; a multiple of WAYS."""
    return min(cache_bytes // (PAGE + _OVERHEAD) // WAYS * WAYS, NONE // WAYS * WAYS)


def store(cache_bytes: int) -> Rows:
    """The rows, zero at first. Memory that is never written to is never there."""
    rows = capacity(cache_bytes)
    if not rows:
        return np.zeros((0, WORDS), np.uint64)
    memory = mmap.mmap(-1, rows * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.uint64).reshape(rows, WORDS)


class Index:
    """Which row holds which page; source only.

    A page may be in one of WAYS rows. Rows that were hit are protected: when all a page's rows are
    taken, a page that was not seen before gets none, and one that was gets a row without a hit.
    Without that, a guest that writes through more memory than there are rows would hit none of them.
    """

    def __init__(self, rows: int) -> None:
        self._sets = max(rows // WAYS, 1)
        self._keys = np.zeros((self._sets, WAYS), np.int64)
        self._worth = np.zeros((self._sets, WAYS), np.uint8)
        self._ghosts = np.zeros(max(rows * _GHOSTS, 1), np.uint8)
        self._twins = np.full(max(1 << (max(rows, 1) - 1).bit_length(), 1), NONE, np.uint32)
        self._checks = np.zeros(len(self._twins), np.uint32)
        self._turn = 0
        self.rows = rows

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The row of each page, -1 if it has none. `keys` may repeat: then all but one have none."""
        if not self.rows:
            return np.full(len(keys), -1, np.int64)
        sets = self._set(keys)
        same = self._keys[sets] == (keys + 1)[:, None]
        ways = same.argmax(axis=1)
        found = same[np.arange(len(keys)), ways]
        at = sets[found], ways[found]
        self._worth[at] = np.minimum(self._worth[at] + 2, _WORTH)
        rows = np.where(found, ways * self._sets + sets, -1)
        if len(rows) > 1 and not (rows[1:] > rows[:-1]).all():
            first = np.zeros(len(rows), bool)
            first[np.unique(rows, return_index=True)[1]] = True
            rows[~first] = -1
        return rows

    def insert(self, keys: Keys) -> NDArray[np.int64]:
        """A row for each of these pages, which have none; -1 for those that get none."""
        rows = np.full(len(keys), -1, np.int64)
        if not self.rows or not len(keys):
            return rows
        sets = self._set(keys)
        seen = self._seen(keys)
        self._turn += 1
        left = np.arange(len(keys))
        for turn in range(WAYS):
            # One for each set, so that they do not collide; a row is not given away twice.
            first = np.unique(sets[left], return_index=True)[1]
            chosen = left[first]
            rows[chosen] = self._place(keys[chosen], sets[chosen], seen[chosen] & (turn == 0))
            if len(first) == len(left):
                break
            left = np.delete(left, first)
        return rows

    def _place(
        self, keys: Keys, sets: NDArray[np.int64], may_replace: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        there = self._keys[sets]
        worth = np.where(there == 0, -1, self._worth[sets].astype(np.int8))
        ways = worth.argmin(axis=1)
        least = worth[np.arange(len(sets)), ways]
        takes = (least < 0) | (least == 0) & may_replace
        takes &= (there != keys[:, None] + 1).all(axis=1)
        ages = (least > 0) & may_replace & ((keys + self._turn) % _AGING == 0)
        self._worth[sets[ages], ways[ages]] -= 1
        rows: NDArray[np.int64] = np.where(takes, ways * self._sets + sets, -1)
        sets, ways = sets[takes], ways[takes]
        self._keys[sets, ways] = keys[takes] + 1
        self._worth[sets, ways] = 0
        return rows

    def _set(self, keys: Keys) -> NDArray[np.int64]:
        """Neighbours come to neighbouring sets, each block at another place."""
        sets: NDArray[np.int64] = (keys + (keys >> PAGE_BITS) * 0x9E3779B1) % self._sets
        return sets

    def _seen(self, keys: Keys) -> NDArray[np.bool_]:
        """Was each of these here before, as far as can be told; they are now."""
        places = keys % len(self._ghosts)
        marks = ((keys // len(self._ghosts)) % 255 + 1).astype(np.uint8)
        seen = self._ghosts[places] == marks
        self._ghosts[places] = marks
        return np.asarray(seen)

    def twins(self, prints: NDArray[np.uint64]) -> NDArray[np.int64]:
        """A row that may hold the same content as each of these prints, or -1."""
        if not self.rows:
            return np.full(len(prints), -1, np.int64)
        places = prints % np.uint64(len(self._twins))
        rows: NDArray[np.int64] = self._twins[places].astype(np.int64)
        rows[self._checks[places] != (prints >> np.uint64(32)).astype(np.uint32)] = -1
        rows[rows == NONE] = -1
        return rows

    def remember(self, prints: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Each of these rows holds what its print tells."""
        if self.rows:
            places = prints % np.uint64(len(self._twins))
            self._twins[places] = rows
            self._checks[places] = (prints >> np.uint64(32)).astype(np.uint32)
