"""Completion offers names that the daemon knows, quickly, and nothing when it is away."""

import socket
import time

import pytest
from click.shell_completion import ShellComplete

from standin import Operation
from sterna.cli.command import Settings
from sterna.cli.completion import VARIABLE
from sterna.cli.main import sterna as root


def offers(*words: str) -> list[str]:
    """What is offered for the last of `words`."""
    complete = ShellComplete(root, {"obj": Settings()}, "sterna", VARIABLE)
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


@pytest.fixture
def busy(sterna, sternad):
    for name in ("web", "worker", "db"):
        sternad.add_vm(name)
    sternad.switches["lan"] = {"switch": {"name": "lan"}}
    sternad.pools["san"] = {"pool": {"name": "san"}}
    for state in ("running", "succeeded"):
        operation = Operation("move", "web", "hv-b")
        operation.id = operation.facts["id"] = f"{state}-1"
        operation.facts["state"] = state
        sternad.operations[operation.id] = operation
    return sternad


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["vm", "show", ""], ["db", "web", "worker"]),
        (["vm", "start", "w"], ["web", "worker"]),
        (["move", "web", ""], ["hv-b", "hv-c", "db", "worker"]),
        (["move", "web", "h"], ["hv-b", "hv-c"]),
        (["host", "show", ""], ["hv-a", "hv-b", "hv-c"]),
        (["op", "show", ""], ["running-1", "succeeded-1"]),
        (["op", "wait", ""], ["running-1"]),
        (["op", "cancel", "r"], ["running-1"]),
        (["switch", "delete", ""], ["lan"]),
        (["pool", "delete", ""], ["san"]),
        (["vm", "st"], ["start", "stop"]),
        (["vm", "create", "--firm"], ["--firmware"]),
        (["vm", "list", "-o", ""], ["table", "json"]),
    ],
)
def test_what_fits_there_is_offered(busy, words, offered):
    assert offers(*words) == offered


def test_the_host_given_before_is_the_one_that_is_asked(busy, monkeypatch):
    monkeypatch.setenv("STERNA_HOST", "unix:///none")
    assert offers("--host", busy.url, "vm", "show", "d") == ["db"]
    assert offers("vm", "show", "--host", busy.url, "d") == ["db"]


def test_hosts_that_are_trusted_are_offered(sterna, tmp_path):
    (tmp_path / "sternad.toml").write_text(f'state_dir = "{tmp_path}"\n')
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "hv-b.json").write_text(
        '{"name": "hv-b", "url": "https://h:7443", "certificate": "-"}'
    )
    assert offers("--host", "") == ["hv-b"]
    (tmp_path / "sternad.toml").write_text("not TOML")
    assert offers("--host", "") == []


@pytest.mark.parametrize("host", ["unix:///none", "nonsense://", "no-such-name"])
def test_a_daemon_that_is_away_offers_nothing_and_says_nothing(sterna, monkeypatch, capsys, host):
    monkeypatch.setenv("STERNA_HOST", host)
    assert offers("vm", "show", "") == []
    assert capsys.readouterr() == ("", "")


def test_a_daemon_that_does_not_answer_is_not_waited_for(sterna, tmp_path):
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "sternad.sock"))
        frozen.listen()
        began = time.monotonic()
        assert offers("vm", "show", "") == []
        assert time.monotonic() - began < 5  # half a second, and a slow machine
