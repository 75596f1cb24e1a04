"""Situations fill their templates; keytabs that are damaged are told, never guessed."""

from __future__ import annotations

import string
import struct
from pathlib import Path

import pytest

from sterna.kerberos import examine, keytab, tickets
from sterna.kerberos.situations import SITUATIONS, Names, Realm, find, short

NAMES = Names(
    domain="LAB.TEST",
    user="alice@LAB.TEST",
    account="hv-a$",
    here="sterna/hv-a.lab.test",
    there="sterna/hv-b.lab.test",
    keytab="/etc/krb5.keytab",
    more={"config": "/etc/krb5.conf"},
)
MORE = {"found", "reason", "seconds", "other", "who", "what"}  # that a step adds


@pytest.mark.parametrize("realm", Realm)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_sentence_and_command_is_filled(situation: str, realm: Realm) -> None:
    found = find(situation, Names(**{**_fields(), "realm": realm}), **dict.fromkeys(MORE, "x"))
    for text in (found.finding, *found.commands):
        assert "@{" in text or not [f for _, f, _, _ in string.Formatter().parse(text) if f]
        assert text == text.strip()


def _fields() -> dict[str, object]:
    return {name: getattr(NAMES, name) for name in Names.__slots__}


def test_a_short_name() -> None:
    assert short("sterna/hv-b.lab.test") == "sterna/hv-b"


def test_without_the_library_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "is_installed", lambda: False)
    found = list(examine.examine(examine.Question(here="hv-a.lab.test")))
    assert [one.id for one in found] == ["kerberos.no-library"]


def entry(principal: str, realm: str, version: int, encryption: int) -> bytes:
    """As the format's description has it."""
    parts = principal.split("/")
    data = struct.pack(">H", len(parts))
    for part in (realm, *parts):
        data += struct.pack(">H", len(part)) + part.encode()
    data += struct.pack(">IIBHH", 1, 0, version & 0xFF, encryption, 16) + bytes(16)
    data += struct.pack(">I", version)
    return struct.pack(">i", len(data)) + data


def test_a_keytab_with_holes(tmp_path: Path) -> None:
    hole = struct.pack(">i", -7) + bytes(7)
    file = tmp_path / "keytab"
    file.write_bytes(b"\x05\x02" + entry("a/b", "R", 300, 18) + hole + entry("c$", "R", 2, 23))
    assert keytab.read(file) == (
        keytab.Entry("a/b@R", 300, 18),
        keytab.Entry("c$@R", 2, 23),
    )


@pytest.mark.parametrize("data", [b"", b"\x05\x01", b"\x05\x02\0\0\0\x40cut"])
def test_what_is_no_keytab(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "keytab"
    file.write_bytes(data)
    with pytest.raises(ValueError, match="keytab"):
        keytab.read(file)
