"""Sets of migration capabilities that lose the VM never reach QEMU."""

from __future__ import annotations

import pytest

from sterna.errors import QEMUUnsupported
from sterna.move import capabilities

KNOWN = capabilities.SOURCE | capabilities.TARGET | {"multifd", "postcopy-ram", "xbzrle", "block"}


@pytest.mark.parametrize(
    "losing",
    [
        {"multifd", "postcopy-ram"},
        {"multifd", "xbzrle"},
        {"release-ram", "postcopy-ram"},
        {"block"},
        {"x-colo"},
    ],
)
def test_a_losing_combination_is_refused_with_its_harm(losing: set[str]):
    with pytest.raises(QEMUUnsupported, match="is not safe"):
        capabilities.refuse_losing(losing | {"events"}, "hv-a")


@pytest.mark.parametrize("wanted", [capabilities.SOURCE, capabilities.TARGET])
def test_all_that_is_not_wanted_is_switched_off(wanted: frozenset[str]):
    settings = capabilities.settings(wanted, KNOWN, "hv-a")
    assert {name for name, on in settings.items() if on} == wanted
    assert settings.keys() == KNOWN


def test_a_capability_that_this_qemu_lacks_is_named():
    with pytest.raises(QEMUUnsupported, match="return-path"):
        capabilities.settings(capabilities.SOURCE, {"events", "pause-before-switchover"}, "hv-a")
