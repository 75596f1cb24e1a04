"""QEMU's command line for machines of every kind. It is an ABI: both ends of a move must build the
same, and a VM made by an older Sterna must find its devices where they were.
"""

from pathlib import Path

import pytest

import golden
from machines import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_the_command_line_of_each_machine_is_as_it_was(name: str) -> None:
    arguments = VARIANTS[name].build(Path("/run/vm"))
    lines = "\n".join(arguments).replace("\n-", "\x00-").replace("\n", " ").split("\x00")
    golden.check(f"argv-{name}.txt", "\n".join(lines) + "\n")
