"""When the disks of a running VM are frozen for a move, and when they are mirrored."""

from dataclasses import replace

import pytest

from sterna.errors import MoveRefused
from sterna.model.move import DiskWish, MoveWishes
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move import seed, travel
from sterna.units import GIB

DISK = Disk(name="vda", pool="local", volume="web1-vda.qcow2")
RECORD = VMRecord(
    spec=VMSpec(name="web1", id="7c1", disks=(DISK,)),
    ownership=Ownership(state=OwnershipState.OWNED, epoch=1),
)
ROOM = {"local": 100 * GIB}


def planned(wishes: MoveWishes, allocated: int, *, shared: bool = False) -> travel.Travel:
    pools = frozenset({"local"}) if shared else frozenset()
    found = travel.plan(RECORD, wishes, shared=pools, is_live=True)
    mirrors = tuple(
        replace(one, offer=replace(one.offer, allocated=allocated)) for one in found.mirrors
    )
    return replace(found, mirrors=mirrors)


def choose(allocated=GIB, bitmaps=(), free=None, *, shared=False, **wished):
    wishes = MoveWishes(target="hv-b", **wished)
    there = planned(wishes, allocated, shared=shared)
    return seed.choose(there, wishes, bitmaps, ROOM if free is None else free)


def test_large_disks_are_sown_and_small_ones_mirrored():
    assert choose(GIB)[0] is False
    assert choose(17 * GIB) == (
        True,
        "17 GiB would have to be copied anew after an interruption",
    )


def test_disks_of_a_vm_that_is_off_cannot_be_sown_and_that_is_said():
    wishes = MoveWishes(target="hv-b", disk_copy="seed")
    found = travel.plan(RECORD, wishes, shared=frozenset(), is_live=False)
    with pytest.raises(MoveRefused, match="it is off") as caught:
        seed.choose(found, wishes, (), ROOM, is_live=False)
    assert caught.value.advice == "Leave --disk-copy out"


def test_what_was_asked_for_is_done():
    assert choose(GIB, disk_copy="seed")[0] is True
    assert choose(170 * GIB, disk_copy="mirror")[0] is False


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"bitmaps": ("vda",)}, "dirty bitmaps"),
        ({"disks": {"vda": DiskWish(format="raw")}}, "another kind of image"),
        ({"flatten": True}, "--flatten"),
        ({"free": {"local": GIB}}, r"pool local has 1 GiB free here"),
        ({"shared": True}, "no disk"),
    ],
)
def test_what_stands_in_the_way_is_said_and_auto_takes_the_mirror(how, why):
    assert choose(17 * GIB, **how)[0] is False
    with pytest.raises(MoveRefused, match=why):
        choose(17 * GIB, disk_copy="seed", **how)
