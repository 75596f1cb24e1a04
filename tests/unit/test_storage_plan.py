"""What a move of disks within a host comes to, and what stands in its way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sterna.model.disk import Checkpoint, Image, StateFile, Volume
from sterna.model.host import Pool, PoolFacts
from sterna.model.move import DiskWish, StorageWishes
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move.storage.plan import Facts, Question, check, plan

GB = 1 << 30
VDA = Disk(name="vda", pool="slow", volume="web-vda.2.qcow2", base=(Image(volume="debian.qcow2"),))
VDB = Disk(name="vdb", pool="slow", volume="web-vdb.raw", format="raw")
MEMORY = StateFile(pool="slow", volume="web.memory", size=5, sha256="0" * 64, accel="tcg")
POINT = Checkpoint(
    id="a1",
    name="before",
    created="",
    images={"vda": Image(volume="web-vda.qcow2")},
    memory=MEMORY,
)
RECORD = VMRecord(
    spec=VMSpec(name="web", id="4c1c2f9e-8d65-4c53-a4a5-28e44a3b8a0f", disks=(VDA, VDB)),
    ownership=Ownership(state=OwnershipState.OWNED, epoch=1),
    checkpoints=(POINT,),
    at="a1",
)
OWN = {
    Volume(pool="slow", volume=name): (GB, GB // 2)
    for name in ("web-vda.2.qcow2", "web-vda.qcow2", "web-vdb.raw", "web.memory", "debian.qcow2")
}


def pool(name: str, **facts: Any) -> PoolFacts:
    return PoolFacts(
        **{"pool": Pool(name=name, path=f"/{name}"), "total": 99 * GB, "free": 50 * GB} | facts
    )


def question(wishes: StorageWishes, record: VMRecord = RECORD, **facts: Any) -> Question:
    good: dict[str, Any] = {
        "host": "a",
        "pools": {"slow": pool("slow"), "fast": pool("fast")},
        "sizes": OWN,
        "virtual": {"vda": 10 * GB, "vdb": 20 * GB},
        "users": {},
        "locked": frozenset(),
    }
    found = Facts(**good | facts)
    return Question(record=record, wishes=wishes, plan=plan(record, wishes), facts=found)


def ids(asked: Question) -> list[str]:
    return [finding.id for finding in check(asked)]


ALL = StorageWishes(pool="fast")
NO_POINTS = replace(RECORD, checkpoints=(), at="")


def test_with_a_pool_everything_of_the_vm_goes_there_but_templates_stay_too():
    found = plan(RECORD, ALL)
    names = {"web-vda.2.qcow2", "web-vda.qcow2", "web-vdb.raw", "web.memory"}
    assert set(found.new) == {Volume(pool="fast", volume=name) for name in names}
    assert set(found.leaving) == {Volume(pool="slow", volume=name) for name in names}
    assert [item.target.volume for item in found.templates] == ["debian.qcow2"]
    assert [disk.pool for disk in found.spec.disks] == ["fast", "fast"]
    assert found.checkpoints[0].memory == replace(MEMORY, pool="fast")
    assert found.checkpoints[0].images == POINT.images
    assert ids(question(ALL)) == []


def test_with_disks_alone_only_those_go_and_memory_stays():
    found = plan(RECORD, StorageWishes(disks={"vdb": DiskWish(pool="fast", format="qcow2")}))
    (one,) = found.relocations
    assert one.there == replace(VDB, pool="fast", volume="web-vdb.qcow2", format="qcow2")
    assert one.is_whole
    assert found.spec.disks[0] == VDA
    assert found.checkpoints == RECORD.checkpoints


def test_a_disk_may_go_elsewhere_than_all_others():
    wishes = StorageWishes(pool="fast", disks={"vdb": DiskWish(pool="cold")})
    assert [disk.pool for disk in plan(RECORD, wishes).spec.disks] == ["fast", "cold"]


def test_a_disk_may_become_another_kind_or_flat_where_it_is():
    wishes = StorageWishes(pool="slow", disks={"vdb": DiskWish(format="qcow2")}, flatten=True)
    vda, vdb = plan(NO_POINTS, wishes).spec.disks
    assert (vda.volume, vda.base) == ("web-vda.2-flat.qcow2", ())
    assert vdb.volume == "web-vdb.qcow2"
    assert ids(question(wishes, NO_POINTS)) == []


NEW = Volume(pool="fast", volume="web-vdb.raw")
OLD = Volume(pool="slow", volume="web-vdb.raw")
BASE = Volume(pool="fast", volume="debian.qcow2")
BAD: dict[str, Question] = {
    "storage.disk-unknown": question(StorageWishes(disks={"vdz": DiskWish(pool="fast")})),
    "storage.already-there": question(StorageWishes(pool="slow")),
    "storage.flatten-checkpoints": question(StorageWishes(pool="fast", flatten=True)),
    "storage.format-frozen": question(
        StorageWishes(disks={"vda": DiskWish(pool="fast", format="raw")})
    ),
    "storage.pool-missing": question(StorageWishes(pool="none")),
    "storage.pool-broken": question(ALL, pools={"fast": pool("fast", problem="read-only")}),
    "storage.file-missing": question(ALL, sizes={k: v for k, v in OWN.items() if k != OLD}),
    "storage.backing-missing": question(
        ALL, sizes={k: v for k, v in OWN.items() if k.volume != "debian.qcow2"}
    ),
    "storage.base-differs": question(ALL, base_differs=frozenset({BASE})),
    "storage.file-exists": question(ALL, sizes=OWN | {NEW: (1, 1)}),
    "storage.same-name": question(
        ALL,
        replace(
            RECORD,
            spec=replace(
                RECORD.spec, disks=(VDA, replace(VDB, pool="slow", volume="web-vda.qcow2"))
            ),
        ),
    ),
    "storage.file-in-the-making": question(ALL, making={NEW: "mail"}),
    "storage.snapshots-lost": question(ALL, snapshots={"vda": ("before",)}),
    "storage.disk-shared": question(ALL, users={OLD: "mail"}),
    "storage.disk-locked": question(ALL, locked=frozenset({OLD})),
    "storage.no-room": question(ALL, pools={"fast": pool("fast", free=2 * GB)}),
}


@pytest.mark.parametrize("identity", BAD)
def test_each_blocker_has_its_id_the_values_and_a_fix(identity):
    findings = {finding.id: finding for finding in check(BAD[identity])}
    assert findings[identity].severity == "blocker"
    assert findings[identity].finding
    assert findings[identity].fix


def test_a_pool_that_the_guests_may_fill_is_a_warning():
    (finding,) = check(question(ALL, pools={"fast": pool("fast", free=4 * GB)}))
    assert (finding.id, finding.severity) == ("storage.may-fill", "warning")


def test_a_template_that_the_pool_has_needs_no_room():
    room = int(4 * GB // 2 * 1.05)  # without the template
    facts = {"fast": pool("fast", free=room)}
    assert ids(question(ALL, pools=facts, sizes=OWN | {BASE: (GB, GB)})) == ["storage.may-fill"]
    assert ids(question(ALL, pools=facts)) == ["storage.no-room"]


def test_two_templates_of_one_name_are_not_taken_for_one():
    disk = replace(VDB, pool="old", volume="b.qcow2", format="qcow2", base=VDA.base)
    two = replace(NO_POINTS, spec=replace(RECORD.spec, disks=(VDA, disk)))
    sizes = OWN | {Volume(pool="old", volume=name): (1, 1) for name in ("b.qcow2", "debian.qcow2")}
    assert ids(question(ALL, two, sizes=sizes)) == ["storage.same-name"]
    same = replace(NO_POINTS, spec=replace(RECORD.spec, disks=(VDA, replace(disk, pool="slow"))))
    sizes = OWN | {Volume(pool="slow", volume="b.qcow2"): (1, 1)}
    assert ids(question(ALL, same, sizes=sizes)) == []


def test_a_template_that_is_just_being_made_for_another_vm_is_not_relied_on():
    base = Volume(pool="fast", volume="debian.qcow2")
    asked = question(ALL, NO_POINTS, making={base: "db"})
    assert ids(asked) == ["storage.base-in-the-making"]


def test_dirty_bitmaps_that_a_disk_loses_are_named():
    asked = question(ALL, NO_POINTS, bitmaps={"vda": ("daily",)})
    (found,) = [one for one in check(asked) if one.id == "storage.bitmaps-lost"]
    assert "daily" in found.finding
    assert found.severity == "warning"
