"""`sterna vm insert|eject` and `--cd`: what is written becomes a body, or is refused with the way to write it."""

from typing import Any

import pytest

from sterna.cli import main as cli
from sterna.cli import spec
from sterna.cli.command import Settings
from sterna.cli.values import BadValue, cd, medium

VM = "/v1/vms/web"
DEBIAN = {"pool": "isos", "volume": "debian.iso"}


class Spy:
    """Stands for the client; keeps what is posted."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        self.posted.append((path, body))
        return {"name": "web", "state": "off"}


@pytest.mark.parametrize(
    ("line", "posted"),
    [
        ("insert web isos/debian.iso", (":insert", {"drive": "", "new_drive": False, **DEBIAN})),
        (
            "insert web cd1 isos/debian.iso",
            (":insert", {"drive": "cd1", "new_drive": False, **DEBIAN}),
        ),
        (
            "insert web isos/debian.iso --new-drive",
            (":insert", {"drive": "", "new_drive": True, **DEBIAN}),
        ),
        ("eject web", (":eject", {"drive": ""})),
        ("eject web cd1", (":eject", {"drive": "cd1"})),
    ],
)
def test_a_line_becomes_a_body(monkeypatch, line, posted):
    spy = Spy()
    monkeypatch.setattr(Settings, "client", lambda *_: spy)
    words = ["vm", *line.split()]
    cli.sterna.main(args=words, prog_name="sterna", standalone_mode=False, obj=Settings())
    assert spy.posted == [(VM + posted[0], posted[1])]


def test_a_path_is_told_how_to_become_a_cd():
    with pytest.raises(BadValue, match="named by its pool") as path:
        medium("/srv/isos/debian.iso")
    assert (
        "sterna pool create isos --path /srv/isos; then write isos/debian.iso" in path.value.advice
    )
    for text in ("debian.iso", "isos/", "/debian.iso", "isos/a/b.iso"):
        with pytest.raises(BadValue) as refused:
            medium(text)
        assert "isos/" in refused.value.advice


def test_drives_are_named_in_their_order_beside_those_of_a_file():
    options = {"cds": (cd("none"), cd("isos/debian.iso"))}
    made = spec.merge({"name": "web", "cds": [{"name": "cd0", **DEBIAN}]}, options, is_local=True)
    assert made["cds"] == [{"name": "cd0", **DEBIAN}, {"name": "cd1"}, {"name": "cd2", **DEBIAN}]
