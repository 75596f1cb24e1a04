"""Files are copied thin, with the hash that any program finds, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from sterna.errors import FileCopyFailed
from sterna.port.copying import CHUNK, carry, sha256


def thin(path: Path) -> bytes:
    """A file of ten and a half chunks with data in two of them, zeroes that are written, and holes."""
    with path.open("wb") as file:
        file.truncate(10 * CHUNK + CHUNK // 2)
        os.pwrite(file.fileno(), os.urandom(1000), 3 * CHUNK + 5)
        os.pwrite(file.fileno(), bytes(CHUNK), 5 * CHUNK)
        os.pwrite(file.fileno(), b"end", 10 * CHUNK + CHUNK // 2 - 3)
    return path.read_bytes()


def test_a_copy_is_the_same_and_thin_and_all_of_it_was_told(tmp_path):
    content, told = thin(tmp_path / "a"), []
    found = asyncio.run(carry(tmp_path / "a", tmp_path / "b", told.append))
    assert (tmp_path / "b").read_bytes() == content
    assert found == hashlib.sha256(content).hexdigest() == asyncio.run(sha256(tmp_path / "b"))
    assert sum(told) == len(content)
    assert (tmp_path / "b").stat().st_blocks * 512 <= 2 * CHUNK


def test_nothing_is_overwritten_and_what_is_not_there_is_told(tmp_path):
    thin(tmp_path / "a")
    (tmp_path / "b").write_text("another's")
    with pytest.raises(FileCopyFailed, match="exists"):
        asyncio.run(carry(tmp_path / "a", tmp_path / "b", print))
    assert (tmp_path / "b").read_text() == "another's"
    with pytest.raises(FileCopyFailed):
        asyncio.run(sha256(tmp_path / "none"))


def test_a_source_that_is_written_meanwhile_is_noticed(tmp_path):
    thin(tmp_path / "a")

    def write(_length: int) -> None:
        with (tmp_path / "a").open("r+b") as file:
            file.write(b"late")

    with pytest.raises(FileCopyFailed, match="changed while it was copied"):
        asyncio.run(carry(tmp_path / "a", tmp_path / "b", write))


def test_a_copy_that_is_cancelled_has_stopped(tmp_path):
    thin(tmp_path / "a")
    told = []

    async def cancelled() -> None:
        loop = asyncio.get_running_loop()

        def tell(length: int) -> None:
            told.append(length)
            if len(told) == 1:
                asyncio.run_coroutine_threadsafe(stop(), loop).result()

        async def stop() -> None:
            task.cancel()
            await asyncio.sleep(0)  # the copy is told to stop before it goes on

        task = asyncio.ensure_future(carry(tmp_path / "a", tmp_path / "b", tell))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert len(told) < 11
