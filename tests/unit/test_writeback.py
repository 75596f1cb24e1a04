"""What arrives of a disk is written down while it comes."""

import asyncio
import os
from pathlib import Path

from sterna.move import writeback


def written(paths, monkeypatch, times=1, error=None):
    """The files that were written down until the move was decided."""
    seen = []
    monkeypatch.setattr(writeback, "PERIOD_S", 0.001)

    async def run():
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def fdatasync(file):
            seen.append(Path(f"/proc/self/fd/{file}").readlink())
            if len(seen) == times:
                loop.call_soon_threadsafe(ended.set)
            if error:
                raise error

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        async with asyncio.timeout(10):
            await writeback.write_back(paths, ended)

    asyncio.run(run())
    return seen


def test_a_disk_is_written_down_again_and_again_until_the_move_is_decided(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")
    assert written([disk], monkeypatch, times=3) == [disk] * 3


def test_a_disk_that_is_gone_or_fails_does_not_disturb_the_others(tmp_path, monkeypatch):
    disks = [tmp_path / name for name in ("gone", "one", "two")]
    for disk in disks[1:]:
        disk.write_bytes(b"x")
    assert written(disks, monkeypatch, times=2, error=OSError("it fails")) == disks[1:]
