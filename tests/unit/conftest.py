"""Unit tests need no QEMU, no root and no network; they are the same on every machine.

Shared here: the command line run in this process, and a stand-in for the daemon that it talks to.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from standin import Standin
from sterna.cli.main import run

# The same examples each time and no clock: a slow machine must not fail a correct program.
settings.register_profile(
    "sterna",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sterna")


class Result(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def sternad(tmp_path: Path) -> Iterator[Standin]:
    daemon = Standin(tmp_path / "sternad.sock")
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def sterna(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Runs one command line against the stand-in, which may be absent."""
    monkeypatch.setenv("STERNA_HOST", f"unix://{tmp_path}/sternad.sock")
    monkeypatch.setenv("STERNA_CONFIG", str(tmp_path / "sternad.toml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("STERNA_TOKEN_FILE", "STERNA_CERTIFICATE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        code = run(arguments)
        return Result(code, *capsys.readouterr())

    return command
