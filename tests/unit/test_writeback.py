"""What arrives of a disk is written down while it comes."""

import asyncio
from pathlib import Path

from sterna.move import writeback


def written(paths, monkeypatch, times=1, failed=0):
    """The files that were written down until the move was decided."""
    seen = []
    monkeypatch.setattr(writeback, "PERIOD_S", 0.001)

    async def run():
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def begin(file, *_):
            seen.append(Path(f"/proc/self/fd/{file}").readlink())
            if len(seen) == times:
                loop.call_soon_threadsafe(ended.set)
            return failed

        monkeypatch.setattr(writeback._libc, "sync_file_range", begin)
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
    assert written(disks, monkeypatch, times=2, failed=-1) == disks[1:]


def test_the_kernel_accepts_what_it_is_asked(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    writeback._begin_writing(disk)
