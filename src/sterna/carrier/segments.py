"""Stretches of QEMU's migration stream that are alike: how they are kept, and how far one goes."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

PAGE = 4096
RECORD = 8 + PAGE  # a page whose record says CONTINUE: the word and the page
ZERO_RECORD = 9
PAGE_BITS = 40  # of a key: page numbers below, the block's number above
MAX_SEGMENTS = 1 << 15  # in one batch
F_ZERO, F_PAGE, F_CONTINUE = 2, 8, 0x20  # of a record's word
_ALONE = 6  # records that are looked at one by one, before many at once
_FIRST = 128  # records that are looked at at once, then four times as many


class Segment(IntEnum):
    """What follows in the stream, `count` times."""

    LITERAL = 0  # a byte
    PAGES = 1  # a word and a page
    ZEROS = 2  # a word and a zero byte
    BARE = 3  # a page; its word and its block's name are literals


STRIDES = np.array([1, RECORD, ZERO_RECORD, PAGE], np.int64)


class Segments:
    """What was found: kind, first byte, count, and for pages their key (of a run: its block's)."""

    __slots__ = ("counts", "keys", "kinds", "starts")

    def __init__(self) -> None:
        self.kinds: list[int] = []
        self.starts: list[int] = []
        self.counts: list[int] = []
        self.keys: list[int] = []

    def add(self, kind: int, start: int, count: int, key: int = 0) -> None:
        """Literals that follow each other become one."""
        if kind == 0 and self.kinds and self.kinds[-1] == 0:
            self.counts[-1] += count
            return
        self.kinds.append(kind)
        self.starts.append(start)
        self.counts.append(count)
        self.keys.append(key)

    def drop(self, told: int) -> None:
        """Forget the bytes before `told`; of a record that is cut, the rest becomes a literal."""
        at = 0
        rest = 0
        while at < len(self.kinds) and self.starts[at] < told:
            start, count, stride = self.starts[at], self.counts[at], int(STRIDES[self.kinds[at]])
            cut = min(count, -(-(told - start) // stride))
            rest = max(0, start + cut * stride - told)
            if cut < count:
                self.starts[at] += cut * stride
                self.counts[at] -= cut
                break
            at += 1
        for column in (self.kinds, self.starts, self.counts, self.keys):
            del column[:at]
        if rest:
            self.kinds.insert(0, Segment.LITERAL)
            self.starts.insert(0, told)
            self.counts.insert(0, rest)
            self.keys.insert(0, 0)


def pages_here(data: bytearray, at: int, end: int) -> int:
    """How many complete records of pages follow each other here."""
    limit = (end - at) // RECORD
    count = 0
    while count < limit:
        if data[at + 7] != F_PAGE | F_CONTINUE or data[at + 6] & 0xF:
            return count
        count += 1
        at += RECORD
        if count == _ALONE:
            break
    window = _FIRST // 4
    while count < limit:
        window = min(window * 4, limit - count)
        words = np.ndarray((window,), "<u2", data, at + 6, (RECORD,))
        other = (words & 0xFF0F) != (F_PAGE | F_CONTINUE) << 8
        first = int(other.argmax())
        if other[first]:
            return count + first
        count += window
        at += window * RECORD
    return count


def zeros_here(data: bytearray, at: int, end: int) -> int:
    """How many records of zero pages follow each other here."""
    limit = (end - at) // ZERO_RECORD
    count = 0
    while count < limit:
        if data[at + 7] != F_ZERO | F_CONTINUE or data[at + 6] & 0xF or data[at + 8]:
            return count
        count += 1
        at += ZERO_RECORD
        if count == _ALONE:
            break
    window = _FIRST // 4
    while count < limit:
        window = min(window * 4, limit - count)
        words = np.ndarray((window,), "<u4", data, at + 5, (ZERO_RECORD,))
        other = (words & 0xFFFF0F00) != (F_ZERO | F_CONTINUE) << 16
        first = int(other.argmax())
        if other[first]:
            return count + first
        count += window
        at += window * ZERO_RECORD
    return count
