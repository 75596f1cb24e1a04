"""What hosts can give of processors, compared; and versions of machines in their order."""

from __future__ import annotations

import pytest

from sterna.model.cpu import (
    LEVELS,
    CPUChoice,
    CPUFacts,
    GuestCPU,
    baseline,
    gained,
    highest,
    lacks,
    lost,
)
from sterna.model.machine import left_behind, newest, oldest
from sterna.qemu.cpus import parse_cpuinfo

V2 = CPUFacts(vendor="GenuineIntel", features=tuple(sorted((*LEVELS["x86-64-v2"], "aes", "fpu"))))
V3 = CPUFacts(
    vendor="AuthenticAMD",
    features=tuple(sorted((*LEVELS["x86-64-v3"], "aes", "fpu", "sha-ni"))),
    models=("EPYC", "max", "qemu64"),
    complete=("qemu64",),
)


def guest(*features: str) -> GuestCPU:
    return GuestCPU(vendor="AuthenticAMD", features=frozenset(features))


def test_a_level_is_had_whole_or_not():
    assert highest(LEVELS["x86-64-v4"]) == "x86-64-v4"
    assert highest(set(LEVELS["x86-64-v4"]) - {"avx512f"}) == "x86-64-v3"
    assert highest(set(LEVELS["x86-64-v3"]) - {"popcnt"}) == ""


def test_what_the_guest_sees_and_the_target_lacks_is_named():
    assert lost(guest("fpu", "avx2", "aes"), V3, V2) == ("avx2",)
    assert lost(guest("fpu", "aes"), V3, V2) == ()


def test_what_not_even_the_source_says_to_give_is_not_judged():
    assert lost(guest("fpu", "kvm-hint"), V3, V2) == ()


def test_what_comes_of_the_number_of_vcpus_is_not_the_hosts():
    smp = CPUFacts(features=(*V3.features, "cmp-legacy", "ht"))
    assert lost(guest("fpu", "cmp-legacy", "ht"), smp, V2) == ()
    assert set(gained(CPUChoice(model="max"), guest(*V3.features), smp)) == set()


def test_what_the_source_masks_since_the_guest_was_started_is_judged():
    masked = CPUFacts(features=V2.features, masked=("avx2",))
    assert lost(guest("avx2"), masked, V2) == ("avx2",)


@pytest.mark.parametrize("facts", [(V3, CPUFacts()), (CPUFacts(), V2)])
def test_nothing_is_concluded_from_facts_that_are_not_known(facts: tuple[CPUFacts, CPUFacts]):
    assert lost(guest("avx2"), *facts) == ()
    assert lacks(CPUChoice(model="x86-64-v4"), CPUFacts(), "kvm") == ()


def test_only_the_hosts_own_model_gains_by_a_move():
    assert gained(CPUChoice(model="x86-64-v2"), guest("fpu"), V2) == ()
    assert "aes" in gained(CPUChoice(model="max"), guest("fpu"), V2)


def test_what_keeps_a_guest_from_being_started_is_named():
    assert lacks(CPUChoice(model="x86-64-v2", features=("aes", "sha-ni")), V2, "tcg") == ("sha-ni",)
    assert lacks(CPUChoice(model="x86-64-v3"), V3, "kvm") == ()
    assert lacks(CPUChoice(model="EPYC"), V3, "tcg") == ()  # the emulator gives what it has
    assert lacks(CPUChoice(model="EPYC"), V3, "kvm") == ("model EPYC",)
    assert lacks(CPUChoice(model="Granite"), V3, "tcg") == ("model Granite",)
    assert lacks(CPUChoice(model="host"), V3, "tcg") == ("KVM",)


def test_hosts_share_the_lowest_of_their_levels_and_what_is_beside_it():
    found = baseline({"a": ("kvm", V2), "b": ("kvm", V3)})
    assert (found.level, found.features) == ("x86-64-v2", ("aes",))  # fpu is in every model
    assert found.levels == {"a": "x86-64-v2", "b": "x86-64-v3"}
    assert found.beyond["a"] == ()
    assert {"avx2", "sha-ni"} < set(found.beyond["b"])
    assert found.choice == CPUChoice(model="x86-64-v2", features=("aes",))


def test_nothing_that_needs_xsave_is_shared_where_it_would_be_half_there():
    half = CPUFacts(features=tuple(one for one in V3.features if one != "xsaveopt"))
    found = baseline({"a": ("tcg", half), "b": ("tcg", V3)})
    assert found.level == "x86-64-v2"
    assert found.features == ("abm", "aes", "bmi1", "bmi2", "movbe", "sha-ni")


def test_hosts_may_share_nothing():
    found = baseline({"a": ("tcg", V2), "b": ("tcg", CPUFacts(features=("fpu",)))})
    assert (found.level, found.features) == ("", ())
    with pytest.raises(ValueError, match="share no level"):
        _ = found.choice


def test_the_hosts_processor_is_read_from_the_kernel():
    text = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: 9\n\nvendor_id\t: other\n"
    )
    assert parse_cpuinfo(text) == ("GenuineIntel", "Xeon: 9")
    assert parse_cpuinfo("") == ("", "")


def test_versions_of_machines_are_ordered_as_numbers():
    machines = ("pc-q35-9.2", "pc-q35-10.0", "pc-q35-7.2")
    assert (oldest(machines), newest(machines)) == ("pc-q35-7.2", "pc-q35-10.0")
    assert newest(()) == ""


def test_hosts_that_know_only_the_old_version_are_left_behind():
    old, both = ("pc-q35-7.1", "pc-q35-7.2"), ("pc-q35-7.2", "pc-q35-10.0")
    offers = {"a": old, "b": both, "c": ("pc-q35-10.0",), "d": ("pc-q35-6.0",)}
    assert left_behind("pc-q35-7.2", "pc-q35-10.0", offers) == {"a": "pc-q35-7.2"}
