"""The codec: what comes out is what went in, both ends stay in step, memory stays bounded."""

import itertools
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import made_stream as made
from sterna.carrier import blocks
from sterna.carrier.batch import BATCH_BYTES
from sterna.carrier.codec import MAX_BLOCK, Decoder, Encoder, pack, unpack
from sterna.errors import BadBlock

MIB = 1 << 20
QUICK = settings(max_examples=60, deadline=None)


class Ends:
    """Both ends of a codec."""

    def __init__(self, cache_bytes: int = 4 * MIB) -> None:
        self.encoder = Encoder(cache_bytes=cache_bytes)
        self.decoder = Decoder(cache_bytes=cache_bytes)
        self.packed = 0

    def take(self, data: bytes, cuts: Sequence[int] = (), *, flush: bool = False) -> bytes:
        """Given in parts, each flushed if `flush`."""
        out = bytearray()
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for begin, end in itertools.pairwise(edges):
            self._through(self.encoder.feed(data[begin:end]), out)
            if flush:
                self._through(self.encoder.flush(), out)
        self._through(self.encoder.flush(), out)
        return bytes(out)

    def _through(self, batches, out) -> None:
        for batch in batches:
            block = pack(batch, 1)
            assert len(block) <= MAX_BLOCK
            self.packed += len(block)
            self.encoder.stats.packed(block)
            for piece in self.decoder.apply(unpack(block)):
                out += piece

    def must_be_in_step(self) -> None:
        assert np.array_equal(self.encoder.pages.rows, self.decoder.rows)

    def known(self) -> dict[str, int]:
        return {kind: count for kind, count in self.encoder.stats.pages.items() if count}


def sweep(pages, block="pc.ram", base=0):
    """One part with all these pages."""
    numbers = range(base + 1, base + len(pages))
    return made.part(made.first(block, base, pages[0].tobytes()) + made.run(numbers, pages[1:]))


def a_move() -> tuple[bytes, bytes]:
    """Two rounds: zero, text and random pages, two blocks, devices; then changes and the end."""
    random_ = made.random_pages(80)
    text = made.text_pages(60)
    text[7] = text[3]
    changed = random_.copy()
    changed[::2, 100] ^= 1
    changed[9] = 0
    changed[11] = text[5]
    changed[13, :2000] ^= 0x55
    mixed = made.first("vga", 0, None) + b"".join(
        made.zeros([n]) if n % 3 else made.run([n], text[n : n + 1]) for n in range(1, 50)
    )
    bitmap = b"\x7e\0\0\0\3" + random_[0].tobytes()
    first = b"".join(
        (
            made.setup({"pc.ram": 80 * 4096, "vga": 64 * 4096}, page_sizes=True),
            made.full("dirty-bitmap", bitmap, 3, kind=1),
            sweep(random_),
            made.part(mixed),
            sweep(text, "vga"),
        )
    )
    second = b"".join(
        (
            made.part(made.first("pc.ram", 3, random_[3].tobytes())),
            sweep(changed),
            b"\x08\0\x08\0\4" + struct.pack(">I", 100),
            sweep(changed, base=0),
            made.full("0000:00:02.0/vga", bytes(range(256)) * 8, 40),
            made.part(made.first("pc.ram", 1, None), kind=3),
            made.end(b'{"devices": []}'),
        )
    )
    return first, second


FIRST, SECOND = a_move()
MOVE = FIRST + SECOND


@pytest.mark.parametrize("cache_bytes", [0, MIB, 16 * MIB])
@pytest.mark.parametrize("flush", [False, True])
def test_any_split_of_a_stream_comes_out_as_it_went_in(cache_bytes, flush):
    for seed in range(4):
        rng = random.Random(seed)
        ends = Ends(cache_bytes)
        cuts = [rng.randrange(len(MOVE)) for _ in range(rng.choice([0, 3, 40]))]
        assert ends.take(MOVE, cuts, flush=flush) == MOVE
        ends.must_be_in_step()


def test_a_stream_byte_by_byte_comes_out_as_it_went_in():
    head = MOVE[:9000]
    assert Ends().take(head, list(range(len(head)))) == head


def test_every_kind_of_page_is_told_in_its_way():
    ends = Ends()
    assert ends.take(FIRST) == FIRST
    assert ends.known() == {"zero": 33, "duplicate": 17, "compressed": 59, "raw": 80}
    assert ends.take(SECOND) == SECOND
    known = ends.known()
    assert known["delta"] == 41
    assert known["unchanged"] == 37
    assert known["zero"] == 35
    assert ends.packed < 80 * 4096 * 1.35
    stats = ends.encoder.stats
    assert stats.stream_bytes == len(MOVE)
    assert sum(stats.encoded.values()) == stats.packed_bytes == ends.packed


def test_bitmaps_and_devices_between_do_not_end_the_gain():
    ends = Ends(16 * MIB)
    ends.take(MOVE)
    before = ends.packed
    again = sweep(made.text_pages(60), "vga")
    ends.take(again)
    ends.take(made.full("dirty-bitmap", bytes(5000), 3, kind=2))
    ends.take(again)
    assert ends.packed - before < len(again) / 10


def test_a_new_connection_in_post_copy_is_understood():
    ends = Ends()
    stream = b"\x08\0\7\0\0" + b"".join(
        made.part(made.first("pc.ram", n, page.tobytes()))
        for n, page in enumerate(made.text_pages(40))
    )
    assert ends.take(stream) == stream
    assert ends.known()["compressed"] == 40


def test_random_pages_go_as_they_are_and_repeated_ones_do_not():
    ends = Ends(0)
    ends.take(made.setup({"pc.ram": 1 << 30}))
    ends.take(sweep(made.random_pages(64)))
    assert ends.known() == {"raw": 64}
    ends = Ends(0)
    ends.take(made.setup({"pc.ram": 1 << 30}))
    ends.take(sweep(np.tile(made.random_pages(64)[:, :512], (1, 8))))
    assert ends.known() == {"compressed": 64}


def test_a_guest_that_writes_more_than_the_cache_holds_still_gains():
    ends = Ends(MIB)
    ends.take(made.setup({"pc.ram": 1 << 30}))
    pages = made.random_pages(480)  # about two caches
    for _ in range(6):
        pages[:, 8] += 1
        ends.take(sweep(pages))
    known = ends.known()
    assert known["delta"] > 480 * 5 * 0.35
    ends.must_be_in_step()


def test_a_hot_set_that_moves_on_is_followed():
    ends = Ends(MIB)
    ends.take(made.setup({"pc.ram": 1 << 30}))
    for base in (0, 1000):
        pages = made.random_pages(150, seed=base)
        for _ in range(40):
            pages[:, 8] += 1
            ends.take(sweep(pages, base=base))
    before = ends.known()["delta"]
    pages[:, 8] += 1
    ends.take(sweep(pages, base=1000))
    assert ends.known()["delta"] - before > 100


def test_memory_of_pages_is_bounded_by_what_was_said():
    ends = Ends(MIB)
    for base in range(0, 4000, 500):
        ends.take(sweep(made.random_pages(500, seed=base), base=base))
    for end in (ends.encoder.pages, ends.decoder):
        assert end.rows.nbytes <= MIB
    ends.must_be_in_step()


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=8), st.booleans())
@QUICK
def test_any_bytes_come_out_as_they_went_in(data, cuts, flush):
    for stream in (data, MOVE[:700] + data + MOVE[700:20000]):
        assert Ends(MIB).take(stream, cuts, flush=flush) == stream


@given(st.lists(st.tuples(st.integers(0, len(MOVE) - 1), st.integers(0, 255)), max_size=20))
@QUICK
def test_a_damaged_stream_comes_out_as_damaged_as_it_was(changes):
    stream = bytearray(MOVE[:60000])
    for at, value in changes:
        stream[at % len(stream)] = value
    assert Ends(MIB).take(bytes(stream)) == stream


def a_block() -> bytes:
    ends = Ends(MIB)
    (batch,) = [*ends.encoder.feed(MOVE), *ends.encoder.flush()]
    return pack(batch, 1)


BLOCK = a_block()


def bounded(block: bytes) -> None:
    decoder = Decoder(cache_bytes=MIB)
    try:
        pieces = decoder.apply(unpack(block))
    except BadBlock:
        return
    assert sum(len(piece) for piece in pieces) <= BATCH_BYTES


@given(st.binary(max_size=400))
@QUICK
def test_any_bytes_are_a_bad_block_or_bounded(block):
    bounded(block)
    bounded(BLOCK[: blocks.HEAD.size] + block)


@given(st.lists(st.tuples(st.integers(0, len(BLOCK) - 1), st.integers(0, 255)), min_size=1))
@QUICK
def test_a_damaged_block_is_bad_or_bounded(changes):
    block = bytearray(BLOCK)
    for at, value in changes:
        block[at] = value
    bounded(bytes(block))


def made_block(*parts: tuple[int, bytes]) -> bytes:
    sizes = [size for full, part in parts for size in (full, len(part))]
    return blocks.HEAD.pack(blocks.VERSION, *sizes) + b"".join(part for _, part in parts)


@given(st.binary(max_size=600))
@QUICK
def test_any_plan_is_bad_or_bounded(plan):
    """As it is: no compression hides the plan from the search."""
    for literals in (b"", b"x" * 10):
        block = made_block(
            (len(plan), plan), (len(literals), literals), (0, b""), (0, b""), (0, b"")
        )
        bounded(block)


def test_bombs_are_refused():
    nothing = ((0, b""),) * 3
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 * MIB))
    liar = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(9 * MIB))
    for claimed in (64 * MIB, 4 * MIB, 8 * MIB, 1000):
        for frame in (bomb, liar):
            for parts in (((4, bytes(4)), (claimed, frame)), ((claimed, frame), (0, b""))):
                with pytest.raises(BadBlock):
                    unpack(made_block(*parts, *nothing))


def test_other_versions_and_sizes_are_refused():
    for block in (b"", b"\2" + BLOCK[1:], BLOCK[:-1], BLOCK + b"x", bytes(MAX_BLOCK + 1)):
        with pytest.raises(BadBlock):
            unpack(block)


def test_rows_that_are_not_there_are_refused():
    for size in (0, MIB // 8):
        with pytest.raises(BadBlock):
            Decoder(cache_bytes=size).apply(unpack(BLOCK))
