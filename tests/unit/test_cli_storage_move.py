"""`sterna move --storage`: what is written becomes the wishes, or is refused with the way to write it."""

import pytest
from click import UsageError

from sterna.cli import main as cli
from sterna.cli.command import Settings


class Spy:
    """Stands for the client; keeps what is posted."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict]] = []

    def post(self, path: str, body: dict) -> dict:
        self.posted.append((path, body))
        return {"id": "1", "kind": "storage-move", "vm": "web", "state": "running"}


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[str, dict]:
    spy = Spy()
    monkeypatch.setattr(Settings, "client", lambda *_: spy)
    line = ["move", *arguments, "--detach"]
    cli.sterna.main(args=line, prog_name="sterna", standalone_mode=False, obj=Settings())
    (posted,) = spy.posted
    return posted


STORAGE = "/v1/vms/web/storage-moves"
WISHES = {
    ("--storage", "fast"): {"pool": "fast"},
    ("--storage", "--pool", "fast"): {"pool": "fast"},
    ("--storage", "vda=fast", "vdb=cold:raw"): {
        "disks": {
            "vda": {"pool": "fast", "format": None},
            "vdb": {"pool": "cold", "format": "raw"},
        }
    },
    ("--storage", "fast", "--disk", "vdb=:raw", "--flatten", "--bandwidth", "1MB"): {
        "pool": "fast",
        "disks": {"vdb": {"pool": "", "format": "raw"}},
        "flatten": True,
        "bandwidth": 1_000_000,
    },
    ("--storage", "fast", "--keep-source", "--keep-for", "48h", "--parallel-disks", "4"): {
        "pool": "fast",
        "keep_source": True,
        "keep_days": 2.0,
        "parallel_disks": 4,
    },
}


@pytest.mark.parametrize("line", WISHES, ids=" ".join)
def test_a_line_becomes_wishes(monkeypatch, line):
    assert asked(monkeypatch, "web", *line) == (STORAGE, WISHES[line])


def test_without_storage_the_argument_is_a_host(monkeypatch):
    body = {"target": "host-b", "pool": "fast"}
    assert asked(monkeypatch, "web", "host-b", "--pool", "fast") == ("/v1/vms/web/moves", body)


@pytest.mark.parametrize(
    "line",
    [
        (),
        ("--storage", "fast", "--dry-run"),
        ("--storage",),
        ("--storage", "fast", "cold"),
        ("host-b", "--keep-for", "48h"),
        ("--storage", "fast", "--keep-for", "48h"),
        ("--storage", "fast", "--deadline", "1m"),
        ("--storage", "fast", "--max-downtime", "1s"),
    ],
    ids=" ".join,
)
def test_a_line_that_says_too_little_or_too_much_is_refused(monkeypatch, line):
    with pytest.raises(UsageError):
        asked(monkeypatch, "web", *line)
