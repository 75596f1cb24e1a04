"""A few cells of the fault table, one or two of each phase. The whole: `make faults`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cells import CELLS, PHASES, Cell
from stage import faulty_daemons
from table import Player, line

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

# The shortest, and those in which most has to go right.
QUICK = [
    Cell("reserve", "target-daemon-killed"),
    Cell("disks", "target-disk-full"),
    Cell("disks", "source-read-error"),
    Cell("memory", "target-qemu-killed"),
    Cell("memory", "cancel"),
    Cell("handover", "step-raises"),
    Cell("handover", "source-qemu-killed"),
    Cell("yielded", "target-daemon-killed"),
    Cell("tidy", "source-daemon-killed"),
    Cell("storage-pivot", "source-daemon-killed"),
    Cell("storage-copy", "target-disk-full"),
    Cell("cold-copy", "source-daemon-killed"),
]


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    found = Player(Path("/tmp/sterna-faults"))
    with faulty_daemons():
        yield found
        found.close()


@pytest.mark.parametrize("cell", QUICK, ids=lambda cell: cell.name)
def test_the_vm_is_there_once_and_whole_after(player: Player, cell: Cell) -> None:
    row = player.play(cell)
    print(line(row))
    assert row.verdict == "good", f"{row.outcome} {row.said}"


def test_each_cell_has_a_name_of_its_own_and_most_apply() -> None:
    assert {cell.phase for cell in QUICK} <= set(PHASES)
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert sum(not cell.not_applicable for cell in CELLS) >= 60
