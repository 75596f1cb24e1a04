"""Where VMs of a host that is emptied go: rules that hold whatever the VMs and hosts are."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from sterna.fleet.placement import Guest, Room, in_order, place

HOSTS = ("hv-b", "hv-c", "hv-d")
GROUPS = st.sets(st.sampled_from(("db", "web")), max_size=2).map(lambda names: tuple(sorted(names)))
SIZES = st.integers(min_value=0, max_value=8)


@st.composite
def guests(draw):
    count = draw(st.integers(min_value=0, max_value=9))
    return [
        Guest(
            id=str(number),
            name=f"vm{number}",
            memory=draw(SIZES),
            priority=draw(st.integers(min_value=0, max_value=2)),
            affinity=tuple(f"with-{name}" for name in draw(GROUPS)),
            anti_affinity=draw(GROUPS),
            fits={host: {"local": draw(SIZES)} for host in draw(st.sets(st.sampled_from(HOSTS)))},
            warned=frozenset(draw(st.sets(st.sampled_from(HOSTS)))),
        )
        for number in range(count)
    ]


ROOMS = st.tuples(
    *(
        st.builds(
            Room,
            name=st.just(name),
            memory=st.integers(min_value=0, max_value=20),
            pools=st.fixed_dictionaries({"local": st.integers(min_value=0, max_value=20)}),
            affinity=GROUPS.map(lambda names: frozenset(f"with-{name}" for name in names)),
            anti_affinity=GROUPS.map(frozenset),
        )
        for name in HOSTS
    )
)


@given(guests(), ROOMS)
def test_no_host_gets_more_than_it_has_nor_a_vm_that_may_not_be_there(vms, rooms):
    placed = place(vms, rooms)
    by_id = {one.id: one for one in vms}
    assert set(placed.hosts) | set(placed.why) == set(by_id)
    assert not set(placed.hosts) & set(placed.why)
    on = defaultdict(list)
    for identity, host in placed.hosts.items():
        on[host].append(by_id[identity])
        assert host in by_id[identity].fits
    for room in rooms:
        there = on[room.name]
        assert sum(one.memory for one in there) <= room.memory
        assert sum(one.fits[room.name]["local"] for one in there) <= room.pools["local"]
        groups = Counter(group for one in there for group in one.anti_affinity)
        groups.update(room.anti_affinity)
        assert all(count == 1 for count in groups.values())


@given(guests(), ROOMS, st.randoms(use_true_random=False))
def test_the_order_of_the_question_changes_nothing(vms, rooms, chance: random.Random):
    first = place(vms, rooms)
    others, halls = list(vms), list(rooms)
    chance.shuffle(others)
    chance.shuffle(halls)
    assert place(others, halls) == first


@given(guests(), ROOMS)
def test_who_has_no_place_is_told_what_every_host_lacks(vms, rooms):
    for reasons in place(vms, rooms).why.values():
        assert set(reasons) == set(HOSTS)
        assert all(reasons.values())


@given(guests(), ROOMS)
def test_the_first_in_order_has_a_place_if_any_host_takes_it_alone(vms, rooms):
    if not vms:
        return
    first = in_order(vms)[0]
    alone = place([first], rooms)
    assert (first.id in place(vms, rooms).hosts) == (first.id in alone.hosts)


def anywhere(name, **more):
    return Guest(id=name, name=name, fits={host: {} for host in HOSTS}, **more)


def test_vms_of_an_affinity_group_go_where_all_of_them_have_room():
    rooms = [Room(name="hv-b", memory=10), Room(name="hv-c", memory=9), Room(name="hv-d", memory=3)]
    shop = [anywhere(f"shop{n}", memory=3, affinity=("shop",)) for n in range(3)]
    placed = place([anywhere("big", memory=9, priority=1), *shop], rooms)
    assert placed.hosts["big"] == "hv-b"
    assert {placed.hosts[one.id] for one in shop} == {"hv-c"}
    assert placed.split == ()


def test_an_affinity_group_that_has_no_room_together_is_split_and_that_is_said():
    rooms = [Room(name="hv-b", memory=4), Room(name="hv-c", memory=4)]
    placed = place([anywhere(f"shop{n}", memory=3, affinity=("shop",)) for n in range(2)], rooms)
    assert sorted(placed.hosts.values()) == ["hv-b", "hv-c"]
    assert placed.split == ("shop",)


def test_a_vm_goes_to_the_host_that_has_its_group_already():
    rooms = [
        Room(name="hv-b", memory=100),
        Room(name="hv-c", memory=4, affinity=frozenset({"shop"})),
    ]
    assert place([anywhere("web", memory=3, affinity=("shop",))], rooms).hosts == {"web": "hv-c"}


def test_load_is_spread_but_packed_where_a_large_one_would_find_no_room():
    rooms = [Room(name="hv-b", memory=10), Room(name="hv-c", memory=6)]
    small = [anywhere(f"small{n}", memory=3, priority=1) for n in range(2)]
    assert set(place(small, rooms).hosts.values()) == {"hv-b"}
    even = [Room(name="hv-b", memory=10), Room(name="hv-c", memory=9)]
    assert set(place(small, even).hosts.values()) == {"hv-b", "hv-c"}
    placed = place([*small, anywhere("large", memory=10)], rooms)
    assert placed.hosts == {"small0": "hv-c", "small1": "hv-c", "large": "hv-b"}
