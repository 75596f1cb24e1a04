"""Copies within a host: equal, thin, never over something that is there, and stopped when asked."""

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import FileCopyFailed
from sterna.move.storage.files import CHUNK, carry, same


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def write(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data[: max(0, size - offset)])


def copy(source: Path, target: Path, executor: ThreadPoolExecutor, **more: int) -> tuple[int, int]:
    seen: list[int] = []
    done = carry(source, target, executor=executor, copied=seen.append, **more)
    return asyncio.run(done), sum(seen)


@given(
    st.integers(0, 5 * CHUNK),
    st.dictionaries(st.integers(0, 5 * CHUNK), st.binary(min_size=1, max_size=9000), max_size=4),
)
def test_a_copy_is_equal_and_each_byte_is_told_once(tmp_path_factory, executor, size, pieces):
    folder = tmp_path_factory.mktemp("copy")
    source, target = folder / "source", folder / "target"
    write(source, size, pieces)
    _, told = copy(source, target, executor)
    assert target.read_bytes() == source.read_bytes()
    assert told == size
    assert asyncio.run(same(source, target, executor))


def test_holes_and_zeroes_take_no_room(tmp_path, executor):
    source, target = tmp_path / "source", tmp_path / "target"
    write(source, 64 * CHUNK, {3 * CHUNK: b"x" * CHUNK, 9 * CHUNK: bytes(4 * CHUNK)})
    written, _ = copy(source, target, executor)
    assert written == CHUNK
    assert target.stat().st_size == 64 * CHUNK
    assert target.stat().st_blocks * 512 <= 2 * CHUNK


def test_a_file_that_is_there_is_not_touched(tmp_path, executor):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with pytest.raises(FileCopyFailed) as error:
        copy(source, target, executor)
    assert isinstance(error.value.__cause__, FileExistsError)
    assert target.read_bytes() == b"old"


def test_a_file_that_is_written_to_meanwhile_is_not_copied(tmp_path, executor):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(4 * CHUNK))

    def meddle(_length: int) -> None:
        with source.open("r+b") as file:
            file.write(b"changed")

    with pytest.raises(FileCopyFailed, match="written to while"):
        asyncio.run(carry(source, target, executor=executor, copied=meddle))


def test_files_that_differ_are_told_apart(tmp_path, executor):
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, 2 * CHUNK, {CHUNK: b"a"})
    for size, pieces in ((2 * CHUNK, {CHUNK: b"b"}), (2 * CHUNK, {0: b"a"}), (CHUNK, {})):
        write(other, size, pieces)
        assert not asyncio.run(same(one, other, executor))


def test_a_copy_that_is_cancelled_ends_before_the_cancel_returns(tmp_path, executor):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(8 * CHUNK))
    begun = threading.Event()

    async def cancelled() -> None:
        work = asyncio.ensure_future(
            carry(source, target, executor=executor, copied=lambda _: begun.set(), speed=CHUNK)
        )
        await asyncio.to_thread(begun.wait)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(cancelled())
    assert target.stat().st_blocks * 512 < 8 * CHUNK
    target.unlink()
