"""QEMU's migration stream, cut into pages and the rest as it comes.

The parser only has to find the pages. It may be wrong about anything: what it calls a page is put
back byte for byte where it was, so a wrong guess costs gain and nothing else. What it does not know
is a literal, and it looks for the next thing it knows: a section's footer, or a RAM section.

The format (QEMU, docs/devel/migration, 7.2 to 10): a header, sections that start with a type byte
and mostly end with a footer, commands. A RAM section holds records: a big-endian word with an
address and flags, the block's name unless CONTINUE is set, and the page, or one byte if it is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from sterna.carrier.segments import (
    F_CONTINUE,
    F_PAGE,
    F_ZERO,
    MAX_SEGMENTS,
    PAGE,
    PAGE_BITS,
    RECORD,
    ZERO_RECORD,
    Segment,
    Segments,
    pages_here,
    zeros_here,
)

_MAGIC = b"QEVM"
_EOF, _START, _PART, _END, _FULL, _SUB, _DESCRIPTION, _CONFIG, _COMMAND = range(9)
_FOOTER = 0x7E
_FLAGS = PAGE - 1
_F_SIZES, _F_EOS, _F_XBZRLE = 4, 0x10, 0x40
_F_HOOK, _F_COMPRESSED, _F_FLUSH = 0x80, 0x100, 0x200
_NEXT = frozenset((_EOF, _START, _PART, _END, _FULL, _DESCRIPTION, _COMMAND))  # after a footer
_SKIP_LIMIT = 64 << 20  # bytes of a description; a larger one is a wrong guess
_BLOCKS = 1 << 12  # names that are told apart
_TAIL = 64  # bytes that a search leaves for the next one, more than any pattern and its check
_TRIES = 256  # places a search looks at before it lets the rest of the bytes go


State: TypeAlias = "Callable[[bytearray, int, int, Segments], int]"


class Parser:
    """Incremental: give it what there is, it takes what it can and remembers where it is."""

    def __init__(self) -> None:
        self._state: State = self._header
        self._section: bytes | None = None  # id of the section we are in
        self._ram: bytes | None = None  # id of the RAM section
        self._skip = 0
        self._sizes = 0  # bytes of RAM blocks still to be listed
        self._after_sizes = False
        self._blocks: dict[bytes, int] = {}
        self._block = 0  # shifted
        self._bare = 0

    def parse(self, data: bytearray, start: int, end: int, found: Segments) -> int:
        """Take `data[start:end]` as far as it is complete; returns where that ends.

        At most MAX_SEGMENTS are added; what is left is then for the next call.
        """
        while len(found.kinds) < MAX_SEGMENTS:
            state = self._state
            at = state(data, start, end, found)
            if at == start and self._state == state:
                break
            start = at
        return start

    def _to(self, state: State, at: int) -> int:
        self._state = state
        return at

    # sections

    def _header(self, data: bytearray, at: int, end: int, found: Segments) -> int:
        if end - at < 8:
            return at
        if data.startswith(_MAGIC, at):
            found.add(Segment.LITERAL, at, 8)
            return self._to(self._top, at + 8)
        return self._to(self._top, at)

    def _top(self, data: bytearray, at: int, end: int, found: Segments) -> int:
        """At the type byte of what comes next."""
        kind = data[at] if at < end else -1
        if kind == _EOF:
            found.add(Segment.LITERAL, at, 1)
            return self._to(self._ended, at + 1)
        if end - at < 5:
            return at
        if kind in (_START, _PART, _END, _FULL):
            return self._enter(data, at, end, found)
        size = 5
        following: State = self._skipped
        if kind == _FOOTER:
            following = self._top
        elif kind == _DESCRIPTION:
            self._skip = int.from_bytes(data[at + 1 : at + 5], "big")
        elif kind == _COMMAND:  # a package's content is a stream like any other
            self._skip = int.from_bytes(data[at + 3 : at + 5], "big")
        if following == self._skipped and (
            kind not in (_DESCRIPTION, _COMMAND) or self._skip > _SKIP_LIMIT
        ):
            size, following = 1, self._search
        found.add(Segment.LITERAL, at, size)
        return self._to(following, at + size)

    def _enter(self, data: bytearray, at: int, end: int, found: Segments) -> int:
        """At the type byte of a section."""
        number = bytes(data[at + 1 : at + 5])
        size = 5
        if data[at] in (_START, _FULL):
            if end - at < 6 or end - at < 14 + data[at + 5]:
                return at
            size = 14 + data[at + 5]
            if data[at + 6 : at + size - 8] == b"ram":
                self._ram = number
        elif self._ram is None:
            if end - at < 22:
                return at
            if _like_a_record(data, at + 5):
                self._ram = number
        self._section = number
        found.add(Segment.LITERAL, at, size)
        return self._to(self._records if number == self._ram else self._search, at + size)

    def _ended(self, data: bytearray, at: int, end: int, _found: Segments) -> int:
        """After the end of the sections: a description, or nothing."""
        if at == end:
            return at
        return self._to(self._top if data[at] in _NEXT and data[at] else self._search, at)

    def _skipped(self, _data: bytearray, at: int, end: int, found: Segments) -> int:
        size = min(self._skip, end - at)
        if size:
            found.add(Segment.LITERAL, at, size)
            self._skip -= size
        if not self._skip:
            self._state = self._top
        return at + size

    def _search(self, data: bytearray, at: int, end: int, found: Segments) -> int:
        """Among bytes that we do not know: the first place that looks like one we do."""
        patterns = [b"\x03ram\0\0\0"]
        if self._section is not None:
            patterns.append(b"\x7e" + self._section)
        if self._ram is not None:
            patterns += [b"\x02" + self._ram, b"\x03" + self._ram]
        limit = max(at, end - _TAIL)
        places = {pattern: _place(data, pattern, at, end) for pattern in patterns}
        for _ in range(_TRIES):
            pattern = min(places, key=places.__getitem__)
            place = places[pattern]
            if place >= limit:
                break
            begin = _begins(data, place, pattern, at)
            if begin >= 0:
                if begin > at:
                    found.add(Segment.LITERAL, at, begin - at)
                return self._to(self._top, begin)
            places[pattern] = _place(data, pattern, place + 1, end)
        if limit > at:
            found.add(Segment.LITERAL, at, limit - at)
        return limit

    # the RAM section

    def _records(self, data: bytearray, at: int, end: int, found: Segments) -> int:
        kinds, starts, counts, keys = found.kinds, found.starts, found.counts, found.keys
        block = self._block
        while end - at >= ZERO_RECORD and len(kinds) < MAX_SEGMENTS:
            low = data[at + 7]
            if data[at + 6] & 0xF:
                break
            if low == F_PAGE | F_CONTINUE:
                count = pages_here(data, at, end)
                if not count:
                    return at
                kinds.append(1)
                size = count * RECORD
            elif low == F_ZERO | F_CONTINUE and not data[at + 8]:
                count = zeros_here(data, at, end)
                kinds.append(2)
                size = count * ZERO_RECORD
            else:
                break
            starts.append(at)
            counts.append(count)
            keys.append(block)
            at += size
        if end - at < 8 or len(kinds) >= MAX_SEGMENTS:
            return at
        return self._record(data, at, end, found)

    def _record(self, data: bytearray, at: int, end: int, found: Segments) -> int:
        """A record that is not one of many."""
        word = int.from_bytes(data[at : at + 8], "big")
        flags = word & _FLAGS
        size = 8
        following: State = self._records
        if flags == _F_EOS:
            following = self._top
        elif flags == _F_SIZES:
            self._sizes = word - flags
            following = self._listed
        elif flags in (_F_FLUSH, _F_HOOK) or (not flags and self._after_sizes):
            pass  # after the list, words may follow whose flags are zero: sizes, addresses
        elif flags & ~F_CONTINUE in (F_PAGE, F_ZERO, _F_XBZRLE, _F_COMPRESSED):
            if not flags & F_CONTINUE:
                if end - at < 9 or end - at < 9 + data[at + 8]:
                    return at
                size += 1 + data[at + 8]
                self._name(bytes(data[at + 9 : at + size]))
            body = _body(flags & ~F_CONTINUE, data, at + size, end)
            if body < 0:
                return at
            size += body
            if flags & F_PAGE:
                self._bare = self._block | (word >> 12) & ((1 << PAGE_BITS) - 1)
                following = self._page
        else:
            return self._to(self._search, at)
        if flags:
            self._after_sizes = False
        found.add(Segment.LITERAL, at, size)
        return self._to(following, at + size)

    def _page(self, _data: bytearray, at: int, end: int, found: Segments) -> int:
        if end - at < PAGE:
            return at
        found.add(Segment.BARE, at, 1, self._bare)
        return self._to(self._records, at + PAGE)

    def _listed(self, data: bytearray, at: int, end: int, found: Segments) -> int:
        """In the list of blocks: a name and a size each; a word with the page size may follow."""
        if self._sizes <= 0:
            self._after_sizes = True
            return self._to(self._records, at)
        if end - at < 8 or end - at < 9 + data[at]:
            return at
        size = 8
        if name := bytes(data[at + 1 : at + 1 + data[at]]):
            size += 1 + len(name)
            length = int.from_bytes(data[at + size - 8 : at + size], "big")
            if not length:
                return self._to(self._search, at)
            self._name(name)
            self._sizes -= length
        found.add(Segment.LITERAL, at, size)
        return at + size

    def _name(self, name: bytes) -> None:
        number = self._blocks.setdefault(name, min(len(self._blocks), _BLOCKS - 1))
        if len(self._blocks) > _BLOCKS:
            del self._blocks[name]
        self._block = number << PAGE_BITS


def _body(kind: int, data: bytearray, at: int, end: int) -> int:
    """Bytes of a record after its word and name; -1 if they are not all there. A page has none."""
    if kind == F_PAGE:
        return 0
    if kind == F_ZERO:
        size = 1
    elif kind == _F_XBZRLE:
        size = 3 + int.from_bytes(data[at + 1 : at + 3], "big") if end - at >= 3 else 3
    else:
        size = 4 + int.from_bytes(data[at : at + 4], "big") if end - at >= 4 else 4
    if kind != F_ZERO and size > 2 * PAGE + 4:
        return 0  # no page becomes larger by compression: we are lost, and will notice
    return size if end - at >= size else -1


def _place(data: bytearray, pattern: bytes, at: int, end: int) -> int:
    place = data.find(pattern, at, end)
    return end if place < 0 else place


def _begins(data: bytearray, place: int, pattern: bytes, at: int) -> int:
    """Where the thing begins whose `pattern` stands at `place`; -1 if it is something else."""
    if pattern[0] == _FOOTER:
        return place if data[place + 5] in _NEXT else -1
    if pattern[1:4] == b"ram":
        begin = place - 5
        return begin if begin >= at and data[begin] == _START and not data[begin + 1] else -1
    return place if _like_a_record(data, place + 5) else -1


def _like_a_record(data: bytearray, at: int) -> bool:
    """Does a RAM record with a block's name begin here, or the end of the records."""
    word = int.from_bytes(data[at : at + 8], "big")
    if word >> 56:
        return False
    if word & _FLAGS in (F_PAGE, F_ZERO):
        size = data[at + 8]
        return size > 0 and all(0x20 < byte < 0x7F for byte in data[at + 9 : at + 9 + min(size, 4)])
    return word & _FLAGS in (_F_EOS, _F_FLUSH) and word < PAGE
