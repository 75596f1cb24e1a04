"""Every check of a move: silent when all is well, and one finding with its fix when it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.checks import registry
from sterna.checks.facts import GuestFacts, LinkFacts, Question
from sterna.errors import MoveRefused
from sterna.model.check import Check, Way, WayState
from sterna.model.disk import Checkpoint, StateFile, Volume
from sterna.model.host import HostFacts, Pool, PoolFacts, QEMUFacts, Switch, SwitchFacts
from sterna.model.move import MoveWishes
from sterna.model.travel import Travel
from sterna.model.vm import NIC, Disk, Ownership, OwnershipState, RunState, VMRecord, VMSpec
from sterna.move.travel import plan, shared_pools
from sterna.units import GIB


def host(name: str) -> HostFacts:
    return HostFacts(
        name=name,
        sterna="0.1.0",
        api=1,
        time="2026-01-01T00:00:00.000Z",
        cpus=2,
        memory_total=8 * GIB,
        memory_free=4 * GIB,
        qemu=QEMUFacts(
            binary="qemu",
            version="7.2",
            accel="tcg",
            accel_reason="asked for",
            machines=("pc-q35-7.2", "pc-q35-7.1"),
        ),
        switches=(SwitchFacts(switch=Switch(name="lan", uplink="eth1"), vlans=True, mtu=1500),),
        pools=(
            PoolFacts(
                pool=Pool(name="san", path="/san", shared=True, identity="1"),
                total=100 * GIB,
                free=100 * GIB,
            ),
            PoolFacts(
                pool=Pool(name="own", path="/own", identity=name), total=100 * GIB, free=100 * GIB
            ),
        ),
        migration_address="192.0.2.1",
        vms=0,
    )


SHARED = (Disk(name="vda", pool="san", volume="web1-vda.qcow2"),)
LOCAL = (Disk(name="vda", pool="own", volume="web1-vda.qcow2"),)
WISHES = MoveWishes(target="b")
RUNS = GuestFacts(state=RunState.RUNNING, accel="tcg")
OFF = GuestFacts(state=RunState.OFF)


def travel(spec: VMSpec, source: HostFacts, target: HostFacts) -> Travel:
    """What the planner says of a running VM with images of 2 GiB in disks of 20 GiB."""
    owned = Ownership(state=OwnershipState.OWNED, epoch=1)
    record = VMRecord(spec=spec, ownership=owned)
    shared = shared_pools(source, target)
    found = plan(record, WISHES, shared=shared, is_live=True)
    mirrors = tuple(
        replace(one, offer=replace(one.offer, size=20 * GIB, allocated=2 * GIB))
        for one in found.mirrors
    )
    return replace(found, mirrors=mirrors)


def question(
    disks: tuple[Disk, ...] = SHARED, target: HostFacts | None = None, **changes: object
) -> Question:
    spec = VMSpec(
        name="web1",
        machine="pc-q35-7.2",
        memory=GIB,
        nics=(NIC(name="net0", switch="lan", vlan=5),),
        disks=disks,
    )
    source, target = host("a"), target or host("b")
    good = Question(
        spec=spec,
        travel=travel(spec, source, target),
        guest=RUNS,
        source=source,
        target=target,
        wishes=WISHES,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def require(asked: Question) -> list[Check]:
    return registry.refuse_blockers(asked.spec.name, asked.target.name, registry.run(asked))


@pytest.mark.parametrize("disks", [SHARED, LOCAL, ()])
def test_nothing_is_found_when_all_is_well(disks: tuple[Disk, ...]):
    assert require(question(disks)) == []


def ways(*states: WayState) -> LinkFacts:
    tried = (
        Way(address=f"192.0.2.{number}", port=4, state=state)
        for number, state in enumerate(states, 1)
    )
    return LinkFacts(ways=tuple(tried))


TARGET = host("b")
BAD = {
    "host.same": question(target=host("a"), wishes=MoveWishes(target="a")),
    "host.api": question(target=replace(TARGET, api=2)),
    "vm.state": question(guest=replace(RUNS, state=RunState.UNKNOWN)),
    "vm.qemu-blocks": question(guest=replace(RUNS, blocked=("a device cannot be moved",))),
    "qemu.machine-type": question(
        target=replace(TARGET, qemu=replace(TARGET.qemu, machines=("pc-q35-7.1",)))
    ),
    "qemu.accel": question(guest=replace(RUNS, accel="kvm")),
    "host.memory": question(target=replace(TARGET, memory_free=GIB - 1)),
    "network.switch-missing": question(target=replace(TARGET, switches=())),
    "network.switch-broken": question(
        target=replace(
            TARGET, switches=(replace(TARGET.switches[0], problem="its uplink is gone"),)
        )
    ),
    "network.vlan": question(
        target=replace(TARGET, switches=(replace(TARGET.switches[0], vlans=False),))
    ),
    "network.switch-differs": question(
        target=replace(TARGET, switches=(SwitchFacts(switch=Switch(name="lan"), vlans=True),))
    ),
    "network.mtu": question(
        target=replace(TARGET, switches=(replace(TARGET.switches[0], mtu=1499),))
    ),
    "network.mac-taken": question(target=replace(TARGET, macs={"": "web2 net1"})),
    "network.blocked": question(link=ways("blocked", "blocked")),
    "network.unreachable": question(link=ways("unreachable")),
    "network.address-absent": question(link=ways("absent")),
    "storage.disk-shared": question(
        LOCAL, users={Volume(pool="own", volume="web1-vda.qcow2"): "web2"}
    ),
    "storage.pool-missing": question(target=replace(TARGET, pools=())),
    "storage.pool-broken": question(
        target=replace(TARGET, pools=(replace(TARGET.pools[0], problem="nothing mounted"),))
    ),
    "storage.no-room": question(
        LOCAL, target=replace(TARGET, pools=(replace(TARGET.pools[1], free=GIB),))
    ),
}


@pytest.mark.parametrize("identity", BAD)
def test_a_bad_situation_is_found_and_explained(identity: str):
    found = registry.run(BAD[identity])
    assert {finding.id for finding in found} == {identity}
    assert found[0].fix


@pytest.mark.parametrize("identity", BAD)
def test_a_blocker_refuses_the_move_with_its_finding(identity: str):
    with pytest.raises(MoveRefused) as caught:
        require(BAD[identity])
    assert caught.value.facts["findings"][0]["id"] == identity
    assert caught.value.exit_code == 3


def test_pools_that_are_two_are_warned_of():
    (found,) = registry.run(
        question(
            target=replace(
                TARGET,
                pools=(replace(TARGET.pools[0], pool=replace(TARGET.pools[0].pool, identity="2")),),
            )
        )
    )
    assert (found.id, found.severity) == ("storage.not-the-same", "warning")


def test_a_pool_that_the_disks_may_fill_one_day_is_warned_of():
    tight = replace(TARGET, pools=(replace(TARGET.pools[1], free=3 * GIB),))
    (found,) = require(question(LOCAL, target=tight))
    assert (found.id, found.severity) == ("storage.may-fill-up", "warning")


def test_every_check_has_a_bad_situation_here():
    asked = {finding.id for bad in BAD.values() for finding in registry.run(bad)}
    assert asked == set(BAD)


def test_a_vm_that_is_off_needs_no_memory_and_no_accelerator():
    off = question(guest=OFF, target=replace(TARGET, memory_free=0))
    assert registry.run(off) == []


def test_all_blockers_are_counted_in_the_one_sentence():
    with pytest.raises(MoveRefused, match=r"and 1 more") as caught:
        require(question(target=replace(TARGET, switches=(), pools=())))
    assert len(caught.value.facts["findings"]) == 2


def test_a_vm_that_is_off_and_whose_disk_another_program_has_open_stays():
    asked = question(LOCAL, guest=OFF)
    locked = (Volume(pool="own", volume="web1-vda.qcow2"),)
    (found,) = registry.run(replace(asked, travel=replace(asked.travel, locked=locked)))
    assert (found.id, bool(found.fix)) == ("storage.disk-locked", True)


def test_snapshots_that_a_mirror_would_not_carry_keep_the_vm_here():
    asked = question(LOCAL)
    mirrors = tuple(replace(one, snapshots=("before",)) for one in asked.travel.mirrors)
    (found,) = registry.run(replace(asked, travel=replace(asked.travel, mirrors=mirrors)))
    assert (found.id, found.severity) == ("storage.snapshots-lost", "blocker")
    assert "before" in found.finding


def test_dirty_bitmaps_that_a_raw_disk_cannot_keep_are_named():
    asked = question(LOCAL)
    mirrors = tuple(replace(one, lost=("daily",)) for one in asked.travel.mirrors)
    (found,) = registry.run(replace(asked, travel=replace(asked.travel, mirrors=mirrors)))
    assert (found.id, found.severity) == ("storage.bitmaps-lost", "warning")
    assert "daily" in found.finding


def test_saved_memory_goes_only_where_it_can_be_loaded():
    asked = question(LOCAL, guest=OFF)
    state = StateFile(pool="own", volume="web1.mem", size=1, sha256="", accel="kvm")
    (found,) = registry.run(replace(asked, travel=replace(asked.travel, saved=state)))
    assert (found.id, found.severity, bool(found.fix)) == ("qemu.saved-accel", "blocker", True)
    point = Checkpoint(id="0a", name="one", created="", memory=state)
    (found,) = registry.run(replace(asked, travel=replace(asked.travel, checkpoints=(point,))))
    assert (found.id, found.severity) == ("qemu.checkpoint-accel", "warning")


@pytest.mark.parametrize(
    ("link", "identity"),
    [(ways("open", "blocked"), "network.way-lost"), (ways("absent", "open"), "network.way-lost")],
)
def test_one_way_that_is_open_is_enough(link: LinkFacts, identity: str):
    (found,) = require(question(link=link))
    assert (found.id, found.severity) == (identity, "warning")


def test_a_vm_that_is_off_and_shares_its_disks_needs_no_migration_network():
    asked = question(link=ways("blocked"), guest=OFF)
    assert asked.travel.files == ()
    assert require(asked) == []


def test_a_switch_to_be_made_gets_the_uplink_that_is_free_there():
    def told(free: tuple[str, ...]) -> tuple[str, str]:
        (found,) = registry.run(question(target=replace(TARGET, switches=(), uplinks=free)))
        return found.command, found.fix

    assert told(("eth0", "eth1"))[0].endswith("switch create lan --uplink eth1")
    assert told(("eth7",))[0].endswith("switch create lan --uplink eth7")
    command, fix = told(("eth7", "eth8"))
    assert command == ""
    assert "eth7, eth8" in fix
