"""What the kernel says of memory and processors."""

import os

import pytest

from sterna.host import inventory

MEMINFO = """\
MemTotal:       16309876 kB
MemFree:          512000 kB
MemAvailable:    8154938 kB
HugePages_Total:       0
"""


def test_memory_is_read_in_bytes() -> None:
    assert inventory.parse_meminfo(MEMINFO) == (16309876 * 1024, 8154938 * 1024)


def test_this_machine_has_memory_and_processors() -> None:
    total, available = inventory.memory()
    assert 0 < available <= total
    assert total == pytest.approx(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.01
    )
    assert 1 <= inventory.cpus() <= (os.cpu_count() or 1)
