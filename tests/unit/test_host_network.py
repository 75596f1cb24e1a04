"""Names of taps and bridges, and reading what iproute2 prints."""

import re
import uuid

import pytest

from sterna.host import fdb, iproute
from sterna.host.bridges import bridge_name
from sterna.host.taps import tap_name
from sterna.model.host import Switch

# `ip -j -d addr show`, iproute2 6.1: a bridge of a kernel with VLAN filtering, one without.
BRIDGES = """[{},{"ifindex":2,"ifname":"br0","flags":["BROADCAST","MULTICAST","UP","LOWER_UP"],
"mtu":1500,"address":"56:aa:bb:cc:dd:ee","ifalias":"sterna:lan","linkinfo":{"info_kind":"bridge",
"info_data":{"forward_delay":0,"stp_state":0,"vlan_filtering":1,"vlan_default_pvid":1}},
"addr_info":[{"family":"inet","local":"192.0.2.1","scope":"global"},
{"family":"inet6","local":"fe80::1","scope":"link"}]},
{"ifname":"br1","flags":["BROADCAST"],"mtu":1500,"master":"br9","linkinfo":{"info_kind":"bridge",
"info_data":{"forward_delay":1500,"vlan_filtering":0}}}]"""


def test_tap_names_fit_and_differ() -> None:
    ids = [str(uuid.UUID(int=number)) for number in range(200)]
    names = {tap_name(vm_id, index) for vm_id in ids for index in (0, 1, 9, 10, 99)}
    assert len(names) == 1000
    assert all(re.fullmatch(r"[a-z0-9]{1,15}", name) for name in names)


def test_a_tap_keeps_its_name() -> None:
    assert tap_name("4c1c2f9e-8d65-4c53-a4a5-28e44a3b8a0f", 1) == "stf9d2c523d6n1"


@pytest.mark.parametrize("index", [-1, 100])
def test_a_nic_beyond_the_name_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="no NIC number"):
        tap_name("x", index)


@pytest.mark.parametrize(
    ("name", "bridge"),
    [("lan", "brlan"), ("a" * 13, "br" + "a" * 13), ("7", "br7")],
)
def test_a_short_plain_name_is_in_the_name_of_its_bridge(name: str, bridge: str) -> None:
    assert bridge_name(Switch(name=name)) == bridge


def test_other_names_make_bridge_names_that_fit_and_differ() -> None:
    names = ["a" * 14, "a" * 15, "a-b", "a.b", "rack-7.floor-2", "rack-7.floor-3", "b-" * 31 + "b"]
    bridges = {bridge_name(Switch(name=name)) for name in names}
    assert len(bridges) == len(names)
    for bridge in bridges:
        assert Switch(name="x", bridge=bridge).bridge == bridge


def test_a_given_bridge_name_is_taken() -> None:
    assert bridge_name(Switch(name="lan", bridge="br0")) == "br0"


def test_bridges_are_read_with_what_their_kernel_can() -> None:
    able, unable = iproute.read_devices(BRIDGES)
    assert (able.name, able.kind, able.alias) == ("br0", "bridge", "sterna:lan")
    assert able.addresses == ("192.0.2.1",)
    assert able.can_tag
    assert able.is_filtering
    assert not unable.can_tag  # although the kernel prints vlan_filtering
    assert unable.master == "br9"
    assert not unable.is_up


def test_no_answer_is_no_device() -> None:
    assert iproute.read_devices("") == iproute.read_devices("[]") == []


def test_netlink_attributes_come_back_as_they_were_packed() -> None:
    packed = fdb._pack(2, b"\x52\x54\x00\x00\x00\x0a") + fdb._pack(5, b"\x07\x00")
    assert len(packed) % 4 == 0
    assert list(fdb._unpack(packed)) == [(2, b"\x52\x54\x00\x00\x00\x0a"), (5, b"\x07\x00")]
    assert list(fdb._unpack(b"\0" * 8)) == [(0, b""), (0, b"")]  # ends, whatever comes
