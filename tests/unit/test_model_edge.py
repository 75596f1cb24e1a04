"""Bad input at the edge of the model: one clear sentence that names the thing, whatever it is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.errors import BadSpec
from sterna.model import edge
from sterna.model.host import Pool, Switch
from sterna.model.move import MoveWishes, StorageWishes
from sterna.model.reservation import (
    Endpoint,
    Known,
    Probe,
    Rejoin,
    Reservation,
    ReservationStatus,
    Take,
)
from sterna.model.vm import (
    NIC,
    DirectBoot,
    Disk,
    Firmware,
    Ownership,
    OwnershipState,
    QEMUProcess,
    VMRecord,
    VMSpec,
)

FULL = VMSpec(
    name="web-1",
    id="0f2f9c53-6a9e-4d2e-9c73-6a1f8a4b2c11",
    vcpus=4,
    memory=2 << 30,
    cpu="x86-64-v2",
    machine="pc-q35-7.2",
    firmware=Firmware.UEFI,
    disks=(Disk(name="vda", pool="san", volume="web-1.qcow2", size=10 << 30),),
    nics=(NIC(name="lan0", switch="lan", mac="52:54:00:12:34:56", vlan=12),),
    boot=DirectBoot(kernel="/boot/vmlinuz", cmdline="quiet"),
    tags=("prod",),
)


def refusal(cls, data) -> str:
    with pytest.raises(BadSpec) as caught:
        edge.parse(cls, data, "spec")
    message = caught.value.message
    assert message.startswith("spec: ")
    assert "\n" not in message
    for foreign in ("pydantic", "dataclass", "ValidationError", "Traceback", "keyword argument"):
        assert foreign not in message
    return message


@pytest.mark.parametrize(
    "value",
    [
        FULL,
        VMSpec(name="a"),
        VMRecord(
            spec=FULL,
            ownership=Ownership(state=OwnershipState.OWNED, epoch=3),
            process=QEMUProcess(pid=7, start_ticks=99, boot_id="b", accel="tcg"),
            notes=("moved",),
        ),
        Pool(name="san", path="/srv/san", shared=True),
        Switch(name="lan", bridge="br0", uplink="eth1"),
        MoveWishes(target="hv-b", bandwidth=100_000_000, deadline_s=60.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_written_is_read_back_the_same(value):
    assert edge.parse(type(value), edge.dump(value), "spec") == value
    assert edge.parse_json(type(value), edge.dump_json(value), "spec") == value
    assert json.loads(edge.dump_json(value)) == edge.dump(value)


def test_sizes_may_be_written_with_units():
    disk = {"name": "vda", "pool": "san", "size": "10GiB"}
    spec = edge.parse(VMSpec, {"name": "a", "memory": "1GiB", "disks": [disk]}, "spec")
    assert (spec.memory, spec.disks[0].size) == (1 << 30, 10 << 30)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "field 'name' is missing"),
        ({"name": "a", "colour": "red"}, "unknown field 'colour'"),
        ({"name": "a", "disks": [{"name": "vda", "pool": "p", "sise": 1}]}, "disks.0.sise"),
        ({"name": "a", "memory": "-1GiB"}, "'-1GiB' is not a size: it must be more than zero"),
        ({"name": "a", "memory": 0}, "0 is not a size"),
        ({"name": "a", "memory": "lots"}, "'lots' is not a size"),
        ({"name": "a", "memory": 1000}, "must be whole MiB"),
        ({"name": "a", "memory": None}, "None is not a size"),
        ({"name": "a", "vcpus": 0}, "vcpus is 0; it must be between 1 and 1024"),
        ({"name": "a", "vcpus": -2}, "vcpus is -2"),
        ({"name": "a", "vcpus": "many"}, "vcpus"),
        ({"name": "Web 1"}, "'Web 1' is not a name for a VM"),
        ({"name": ""}, "'' is not a name for a VM"),
        ({"name": "../../etc/passwd"}, "is not a name"),
        ({"name": "a" * 64}, "at most 63"),
        ({"name": "a\n"}, "is not a name"),
        ({"name": 7}, "name"),
        ({"name": "a", "firmware": "coreboot"}, "firmware"),
        (
            {"name": "a", "disks": [{"name": "vda", "pool": "p", "size": "-5"}]},
            "'-5' is not a size",
        ),
        (
            {"name": "a", "disks": [{"name": "vda", "pool": "p", "volume": "../x"}]},
            "plain file name",
        ),
        ({"name": "a", "disks": [{"name": "vda", "pool": "p", "image": "x.img"}]}, "absolute path"),
        ({"name": "a", "disks": [{"name": "vda", "pool": "p", "format": "vhd"}]}, "disks.0.format"),
        ({"name": "a", "nics": [{"name": "n0", "switch": "lan", "vlan": 5000}]}, "VLAN 5000"),
        (
            {"name": "a", "nics": [{"name": "n0", "switch": "lan", "mac": "zz"}]},
            "'zz' is not a MAC",
        ),
        (
            {"name": "a", "nics": [{"name": "n0", "switch": "l", "mac": "01:00:5e:00:00:01"}]},
            "unicast",
        ),
        ({"name": "a", "nics": [{"name": "n0", "switch": "l"}] * 2}, "two NICs are called n0"),
        ({"name": "a", "boot": {"kernel": "vmlinuz"}}, "'vmlinuz' must be an absolute path"),
        ({"name": "a", "tags": ["Not Fine"]}, "is not a name for a tag"),
        ([], "spec: "),
        ("web", "spec: "),
        (None, "spec: "),
    ],
)
def test_a_bad_vm_gets_one_clear_sentence(data, words):
    assert words in refusal(VMSpec, data)


@pytest.mark.parametrize(
    ("cls", "data", "words"),
    [
        (Pool, {"name": "p", "path": "relative"}, "must be absolute"),
        (Pool, {"name": "p"}, "field 'path' is missing"),
        (Switch, {"name": "lan", "bridge": "a-very-long-bridge-name"}, "at most 15"),
        (MoveWishes, {"target": "b", "max_downtime_ms": 0}, "between 1 and 2000000"),
        (MoveWishes, {"target": "b", "deadline_s": -1}, "more than zero"),
        (MoveWishes, {"target": "b", "deadline_s": float("nan")}, "deadline_s is nan"),
        (
            MoveWishes,
            {"target": "b", "keep_source": True, "keep_days": float("nan")},
            "keep_days is nan",
        ),
        (
            MoveWishes,
            {"target": "b", "keep_source": True, "keep_days": float("inf")},
            "keep_days is inf",
        ),
        (MoveWishes, {"target": "b", "keep_source": True, "keep_days": 36501}, "36500 at most"),
        (
            StorageWishes,
            {"pool": "p", "keep_source": True, "keep_days": float("nan")},
            "keep_days is nan",
        ),
        (MoveWishes, {"target": "b", "keep_days": 2}, "nothing is kept; set keep_source"),
        (StorageWishes, {"pool": "p", "keep_days": 2}, "nothing is kept; set keep_source"),
        (MoveWishes, {"target": "b", "bandwidth": "9" * 400 + ".5G"}, "less than 8 EiB"),
        (MoveWishes, {"target": "b", "bandwidth": 1 << 63}, "less than 8 EiB"),
        (Take, {"vm_id": "id-web", "epoch": 0}, "epoch is 0"),
        (Take, {"vm_id": "", "epoch": 1}, "is not the id of a VM"),
        (Take, {"vm_id": "id-web", "epoch": "many"}, "epoch: "),
        (Rejoin, {"vm_id": "../web", "epoch": 1}, "is not the id of a VM"),
        (Known, {"state": "mine", "epoch": 1}, "state"),
        (Known, {"state": "", "epoch": -1}, "epoch is -1"),
        (Endpoint, {"address": "::1", "port": 65536}, "port is 65536"),
        (Probe, {"port": -1}, "port is -1"),
        (ReservationStatus, {"operation": "o", "state": "owned", "port": 1 << 20}, "port is"),
        (MoveWishes, {"target": "b", "bandwidth": "0"}, "more than zero"),
        (MoveWishes, {"target": "b", "live": True}, "unknown field 'live'"),
    ],
)
def test_other_requests_too(cls, data, words):
    assert words in refusal(cls, data)


RESERVATION = {
    "operation": "op-1",
    "epoch": 2,
    "source": "hv-a",
    "spec": {
        "name": "web",
        "id": "id-web",
        "disks": [{"name": "vda", "pool": "one", "volume": "web.qcow2"}],
    },
    "live": True,
    "paused": False,
    "accel": "kvm",
    "nvram": "AAAA",
    "files": [{"place": {"pool": "one", "volume": "base.raw"}, "size": 5}],
    "mirrors": [{"disk": "vda", "size": 1}],
}
BASE_FILE = RESERVATION["files"][0]
SPEC = RESERVATION["spec"]


def test_a_reservation_that_makes_sense_is_taken():
    assert edge.parse(Reservation, RESERVATION, "spec").mirrors[0].disk == "vda"
    edge.parse(Reservation, RESERVATION | {"operation": ""}, "spec")  # only a question


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": -3}, "epoch is -3"),
        ({"epoch": 1 << 63}, "epoch is"),
        ({"operation": "../op"}, "is not the id of an operation"),
        ({"operation": "o" * 65}, "is not the id of an operation"),
        ({"source": ""}, "not the name of a host"),
        ({"grace_s": float("nan")}, "grace_s is nan"),
        ({"grace_s": float("inf")}, "grace_s is inf"),
        ({"nvram": "no base 64"}, "nvram is not base64"),
        ({"live": False}, "there are mirrors, and the VM is off"),
        ({"spec": SPEC | {"id": ""}}, "'' is not the id of a VM"),
        ({"spec": SPEC | {"disks": [{"name": "vda", "pool": "one"}]}}, "vda has no volume"),
        ({"mirrors": [{"disk": "vdb", "size": 1}]}, "mirror of 'vdb'"),
        ({"mirrors": [{"disk": "vda", "size": -1}]}, "size is -1"),
        ({"mirrors": [{"disk": "vda", "size": 1}] * 2}, "one/web.qcow2 is to be made 2 times"),
        ({"files": [BASE_FILE] * 2}, "one/base.raw is to be made 2 times"),
        ({"files": [BASE_FILE | {"size": 1 << 80}]}, "size"),
        ({"files": [BASE_FILE | {"allocated": -5}]}, "allocated is -5"),
        ({"files": [{"place": {"pool": "one", "volume": ""}, "size": 0}]}, "has no name"),
        ({"files": [BASE_FILE] * 20000}, "20000 files"),
        ({"carrier": {"cache_bytes": -1}}, "cache_bytes is -1"),
    ],
)
def test_a_reservation_that_makes_none_is_refused_at_the_door(changes, words):
    assert words in refusal(Reservation, RESERVATION | changes)


def test_more_than_one_mistake_is_counted():
    message = refusal(VMSpec, {"colour": 1, "shape": 2})
    assert message.endswith("more)")


@pytest.mark.parametrize("text", ["", "{", "[1,", "\x00", '{"name": "a"', "nonsense"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(BadSpec) as caught:
        edge.parse_json(VMSpec, text, "web.json")
    assert "web.json" in caught.value.message


TEXT = st.text("aZ09-._/: \n\0é\N{PILE OF POO}", max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["name", "vcpus", "memory", "disks", "nics", "boot", "tags", "firmware"])


@settings(max_examples=60)
@given(st.dictionaries(FIELDS, JSON, max_size=5))
def test_nothing_but_badspec_ever_comes_out(data):
    try:
        edge.parse(VMSpec, data, "spec")
    except BadSpec as error:
        assert "\n" not in error.message.replace("\\n", "")


def test_halves_of_characters_are_refused_before_anything_is_made_of_them():
    for fine in (b'{"a": "\\u00e9 \\ud83d\\ude00"}', b"\x00\\u binary", b'"\xc3\xa9"'):
        edge.require_text(fine, "the request")
    with pytest.raises(BadSpec, match="half a character"):
        edge.require_text(b'{"a": ["\\ud800"]}', "the request")
