"""What a guest's memory is taken for, on files like QEMU's that are changed meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sterna.move import sample
from sterna.move.sample import PAGE

PAGES = 8192
NAME = "memory-backend-memfd"  # QEMU's


@contextmanager
def ram(name: str = NAME) -> Iterator[int]:
    """Memory that this process keeps as QEMU would; all of it holes."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.truncate(fd, PAGES * PAGE)
    try:
        yield fd
    finally:
        os.close(fd)


def look(work=None):
    async def nothing() -> str:
        return "done"

    done, found = asyncio.run(sample.during(os.getpid(), work() if work else nothing()))
    assert done == "done"
    return found


def fill(fd: int, first: int, count: int, content) -> None:
    for number in range(first, first + count):
        os.pwrite(fd, content(number), number * PAGE)


def noise(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE)


def test_memory_that_was_never_written_to_is_not_used_and_stays_so():
    with ram() as fd:
        found = look()
        assert (found.used, found.dirty) == (0, 0.0)
        assert os.fstat(fd).st_blocks == 0


def test_what_is_used_and_what_compresses_is_told_apart():
    with ram() as fd:
        fill(fd, 0, PAGES // 4, noise)
        found = look()
        assert found.used == pytest.approx(PAGES * PAGE / 4, rel=0.1)
        assert found.first > 0.98
        fill(fd, 0, PAGES // 4, lambda number: (b"%08d" % number) * (PAGE // 8))
        assert look().first < 0.2


def test_the_pace_and_the_size_of_changes_are_seen():
    with ram() as fd:
        fill(fd, 0, PAGES, noise)

        async def changing() -> str:
            await asyncio.sleep(0.1)
            for number in range(0, PAGES, 4):
                os.pwrite(fd, b"changed!", number * PAGE + 64)
            return "done"

        found = look(changing)
    seconds = PAGES * PAGE / 4 / found.dirty
    assert 0.1 <= seconds < 5  # a quarter, in the time between two looks
    assert found.again < 0.05


def test_a_process_without_such_memory_is_not_judged():
    with ram("something else"):
        assert look() is None
