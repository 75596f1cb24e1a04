"""Files as chunks: digests, holes, blocks and the root."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.host import chunks
from sterna.host.chunks import BLOCK, CHUNK, HOLE

sizes = st.one_of(
    st.sampled_from([1, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK // 8]), st.integers(1, 40 * BLOCK)
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Zeroes with a few pieces of something else."""
    size = draw(sizes)
    data = bytearray(size)
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, size - 1))
        end = min(size, begin + draw(st.integers(1, 3 * BLOCK)))
        data[begin:end] = b"\x5a" * (end - begin)
    return bytes(data)


@given(contents())
def test_what_was_packed_is_unpacked_as_it_was(data):
    blocks, packed = chunks.pack(data)
    found, done = bytearray(len(data)), 0
    for offset, run in chunks.runs(blocks, len(data)):
        found[offset : offset + run] = packed[done : done + run]
        done += run
    assert (bytes(found), done) == (data, len(packed))
    assert len(packed) <= sum(
        BLOCK for at in range(0, len(data), BLOCK) if any(data[at : at + BLOCK])
    )


def test_blocks_that_a_chunk_does_not_have_are_refused():
    assert list(chunks.runs(0b11, BLOCK + 1)) == [(0, BLOCK + 1)]
    for blocks in (0b100, -1):
        with pytest.raises(ValueError, match="fewer blocks"):
            list(chunks.runs(blocks, BLOCK + 1))


@pytest.fixture
def thin(tmp_path: Path):
    """Five chunks and a bit: data in the second and in the last one, holes elsewhere."""
    size = 5 * CHUNK + 100
    with (tmp_path / "thin").open("w+b") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), b"x" * BLOCK, CHUNK + 3 * BLOCK)
        os.pwrite(file.fileno(), b"end", size - 3)
        yield file.fileno(), size


def test_holes_are_not_read(thin, monkeypatch):
    fd, size = thin
    asked: list[int] = []
    read = chunks.read
    monkeypatch.setattr(chunks, "read", lambda *about: asked.append(about[2]) or read(*about))
    found = list(chunks.held(fd, size, 0, 100))
    assert asked == [1, 5]
    assert [digest == HOLE for digest in found] == [True, False, True, True, True, False]
    assert list(chunks.filled(fd, size, 2, 5)) == []
    assert list(chunks.held(fd, size, 1, 3)) == found[1:3]


def test_written_zeroes_are_a_hole_too(tmp_path):
    assert chunks.digest(bytes(CHUNK)) == chunks.digest(bytes(7)) == HOLE
    assert chunks.digest(bytes(CHUNK - 1) + b"x") != HOLE


def test_the_root_is_of_the_content_and_of_the_size():
    def root(size: int, *digests: bytes) -> str:
        found = chunks.Root(size)
        for digest in digests:
            found.add(digest)
        return found.text

    assert root(CHUNK, HOLE) != root(CHUNK - 1, HOLE)
    assert root(2 * CHUNK, HOLE, b"d" * 32) != root(2 * CHUNK, b"d" * 32, HOLE)
    assert root(2 * CHUNK, HOLE + HOLE) == root(2 * CHUNK, HOLE, HOLE)


def test_a_file_that_ends_too_early_is_an_error(thin):
    fd, size = thin
    with pytest.raises(OSError, match="ends too early"):
        chunks.read(fd, size + CHUNK, 5)


@given(contents())
def test_what_was_squeezed_is_spread_as_it_was(data):
    squeezed = chunks.squeeze(data)
    assert len(squeezed) <= len(data)
    assert chunks.spread(squeezed, len(data)) == data


def test_what_does_not_compress_is_left_as_it_is():
    data = os.urandom(CHUNK // 8)
    assert chunks.squeeze(data) is data


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", chunks.squeeze(bytes(CHUNK)), chunks.squeeze(bytes(BLOCK))[:-3]],
    ids=["nothing", "garbage", "larger than told", "cut"],
)
def test_what_spreads_to_another_size_is_refused_without_taking_its_room(data):
    with pytest.raises(ValueError, match=f"it is not {BLOCK} bytes"):
        chunks.spread(data, BLOCK)
