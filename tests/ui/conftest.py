"""A stand-in daemon for what a person sees."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from standin import Standin


@pytest.fixture
def sternad(tmp_path: Path) -> Iterator[Standin]:
    daemon = Standin(tmp_path / "sternad.sock")
    daemon.add_vm("web")
    daemon.start()
    yield daemon
    daemon.close()
