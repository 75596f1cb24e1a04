"""Words for `bridge vlan`, and what it says."""

import pytest

from sterna.host import vlans
from sterna.model.network import parse_trunk, ranges, tagging

# `bridge -j vlan show dev tap`, iproute2 6.1
SHOWN = """[{"ifname":"tap","vlans":[{"vlan":1,"flags":["PVID","Egress Untagged"]},
{"vlan":10},{"vlan":20,"vlanEnd":22}]}]"""


@pytest.mark.parametrize(
    ("has", "vlan", "trunk", "uplink", "lines"),
    [
        ("", None, "", "up0", []),
        ("", 1, "", "up0", []),
        ("", 7, "", "", ["vlan add dev tap vid 7 pvid untagged", "vlan del dev tap vid 1"]),
        (
            *("", 7, "", "up0"),
            [
                "vlan add dev tap vid 7 pvid untagged",
                "vlan del dev tap vid 1",
                "vlan add dev up0 vid 7",
            ],
        ),
        (
            *("", None, "10,20-22", "up0"),
            [
                "vlan add dev tap vid 10",
                "vlan add dev tap vid 20-22",
                "vlan add dev up0 vid 10",
                "vlan add dev up0 vid 20-22",
            ],
        ),
        (
            *("", 7, "8", ""),
            [
                "vlan add dev tap vid 7 pvid untagged",
                "vlan add dev tap vid 8",
                "vlan del dev tap vid 1",
            ],
        ),
        (SHOWN, None, "10,20-22", "", []),
        (SHOWN, None, "", "", ["vlan del dev tap vid 10", "vlan del dev tap vid 20-22"]),
        (
            *(SHOWN, 21, "10", ""),
            [
                "vlan del dev tap vid 21",
                "vlan add dev tap vid 21 pvid untagged",
                "vlan del dev tap vid 1",
                "vlan del dev tap vid 20",
                "vlan del dev tap vid 22",
            ],
        ),
    ],
)
def test_a_port_is_brought_from_what_it_has_to_what_it_wants(has, vlan, trunk, uplink, lines):
    now = vlans.read(has) if has else vlans.FRESH
    assert vlans.lines("tap", now, vlans.wanted(vlan, trunk), uplink) == lines


def test_what_bridge_shows_is_read():
    assert vlans.read(SHOWN) == {1: True, 10: False, 20: False, 21: False, 22: False}
    assert vlans.read("") == {}


def test_trunks_are_lists_and_ranges():
    assert parse_trunk("10,20-22") == {10, 20, 21, 22}
    assert ranges(parse_trunk("22,10,20-21")) == ["10", "20-22"]
    assert parse_trunk("") == frozenset()
    assert tagging(7, "10,20") == "VLAN 7, trunk 10,20"


@pytest.mark.parametrize("text", ["1", "0-3", "4095", "30-20", "x", "10,", "10;20"])
def test_what_is_no_list_of_vlans_is_refused(text):
    with pytest.raises(ValueError, match="neither a VLAN nor a range"):
        parse_trunk(text)
