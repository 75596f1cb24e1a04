"""The check of the guest's disk log, on made-up images."""

from pathlib import Path

import pytest

from sterna.lab import disklog
from sterna.lab.disklog import seal
from sterna.lab.guest.wire import BLOCK_BYTES

SLOTS = 16


def image(path: Path, last: int, *, blocks: int = SLOTS, slots: int = SLOTS, disk: int = 0) -> Path:
    """A disk after blocks 1 to `last` were written in a circle of `slots`."""
    content = bytearray(blocks * BLOCK_BYTES)
    for seq in range(1, last + 1):
        body = bytes([seq % 256]) * 100
        put(content, (seq - 1) % slots, seal(7, seq, slots, body=body, disk=disk))
    path.write_bytes(content)
    return path


def put(disk: bytearray, slot: int, block: bytes) -> None:
    disk[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES] = block


def change(path: Path, slot: int, block: bytes) -> None:
    disk = bytearray(path.read_bytes())
    put(disk, slot, block)
    path.write_bytes(disk)


@pytest.fixture
def disk(tmp_path):
    return tmp_path / "disk"


@pytest.mark.parametrize("last", [1, 5, 16, 17, 100])
def test_a_whole_log_proves_all_that_was_durable(disk, last):
    log = disklog.check(image(disk, last))
    assert (log.highest, log.bad, log.missing, log.boots) == (last, (), (), (7,))
    assert log.good == min(last, SLOTS)
    assert log.proves(last)
    assert not log.proves(last + 1)


def test_a_disk_without_a_log_proves_nothing_was_promised(disk):
    disk.write_bytes(bytes(SLOTS * BLOCK_BYTES))
    assert disklog.check(disk).proves(0)
    disk.write_bytes(b"")
    assert disklog.check(disk).highest == 0


def test_a_flipped_bit_is_found_where_it_is(disk):
    image(disk, 40)
    data = bytearray(disk.read_bytes())
    data[3 * BLOCK_BYTES + 2000] ^= 1
    disk.write_bytes(data)
    log = disklog.check(disk)
    assert log.bad == (3,)
    assert not log.proves(1)


def test_a_block_that_was_never_written_is_missing(disk):
    image(disk, 40)
    change(disk, 2, bytes(BLOCK_BYTES))
    assert disklog.check(disk).missing == (35,)


def test_an_old_block_in_place_of_a_newer_is_missing(disk):
    image(disk, 40)
    change(disk, 2, seal(7, 19, SLOTS))
    log = disklog.check(disk)
    assert log.missing == (35,)
    assert not log.proves(40)


def test_a_good_block_in_the_wrong_slot_is_bad(disk):
    image(disk, 40)
    change(disk, 2, seal(7, 36, SLOTS))
    assert disklog.check(disk).bad == (2,)


def test_the_write_that_a_crash_tore_is_not_an_error(disk):
    image(disk, 40)
    change(disk, 40 % SLOTS, seal(7, 41, SLOTS)[:2048] + bytes(2048 - 1) + b"x")
    log = disklog.check(disk)
    assert log.torn == 8
    assert log.proves(40)
    assert not log.proves(41)


def test_a_log_goes_on_over_boots(disk):
    image(disk, 20)
    change(disk, 4, seal(8, 21, SLOTS))
    log = disklog.check(disk)
    assert (log.highest, log.boots) == (21, (7, 8))
    assert log.proves(21)


def test_a_log_of_another_size_is_stale_and_not_damaged(disk):
    image(disk, 20, blocks=32)
    for seq in (21, 22):
        change(disk, (seq - 1) % 8, seal(7, seq, 8, first=21))
    log = disklog.check(disk)
    assert (log.highest, log.slots, log.good) == (22, 8, 2)
    assert log.proves(22)


def test_the_log_of_another_disk_is_not_taken_for_this_ones(disk):
    image(disk, 5, disk=1)
    assert disklog.check(disk, "vdb").proves(5)
    assert disklog.check(disk, "vda").bad == (0, 1, 2, 3, 4)
