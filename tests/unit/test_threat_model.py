"""docs/threat-model.md names tests; they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(
    r"`(test_\w+\.py)(?:::(test_\w+))?`", (ROOT / "docs/threat-model.md").read_text()
)


def test_lines_are_found():
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_what_is_said_to_be_shown_is_tested(file, name):
    (found,) = (ROOT / "tests").glob(f"*/{file}")
    assert not name or f"def {name}(" in found.read_text()
