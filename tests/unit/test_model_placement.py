"""The rules for the place of a VM, as they are written, read and changed."""

from __future__ import annotations

import pytest

from sterna.errors import BadSpec
from sterna.model.edge import dump, parse
from sterna.model.placement import PlacementRules, groups
from sterna.model.several import SeveralWishes
from sterna.model.vm import VMChanges, VMSpec


def test_a_vm_without_rules_is_that_of_before():
    spec = parse(VMSpec, {"name": "web"}, "spec")
    assert spec.placement == PlacementRules()
    assert spec.placement.allows("any")
    assert parse(VMSpec, dump(spec), "spec") == spec


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"priority": 101}, "must be between 0 and 100"),
        ({"priority": -1}, "must be between 0 and 100"),
        ({"affinity": ["A b"]}, "not a name for an affinity group"),
        ({"allowed_hosts": [""]}, "not a name for a host"),
        ({"affinity": ["db"], "anti_affinity": ["db"]}, "group of both kinds"),
        ({"colour": "red"}, "unknown field"),
    ],
)
def test_rules_that_make_no_sense_are_refused_in_one_sentence(rules, words):
    with pytest.raises(BadSpec, match=words):
        parse(VMSpec, {"name": "web", "placement": rules}, "spec")


def test_a_list_of_hosts_allows_each_by_any_of_its_names():
    rules = PlacementRules(allowed_hosts=("hv-a", "hv-b"))
    assert rules.allows("hv-b.example.org", "hv-b")
    assert not rules.allows("hv-c")


def test_changes_hold_what_was_given_and_something_must_be():
    changes = parse(VMChanges, {"affinity": [], "priority": 90}, "changes")
    assert changes.placement == {"affinity": (), "priority": 90}
    with pytest.raises(BadSpec, match="say what shall change"):
        parse(VMChanges, {}, "changes")


def test_groups_name_the_vms_of_a_host():
    found = groups([
        ("b", PlacementRules(anti_affinity=("db",), affinity=("shop",))),
        ("a", PlacementRules(anti_affinity=("db",))),
        ("c", PlacementRules()),
    ])  # fmt: skip
    assert found.anti_affinity == {"db": ("a", "b")}
    assert found.affinity == {"shop": ("b",)}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"vms": [], "wishes": {"target": "b"}}, "name at least one VM"),
        ({"vms": ["a", "a"], "wishes": {"target": "b"}}, "names a more than once"),
        (
            {"vms": ["a"], "wishes": {"target": "b", "approved": {"facts": {}}}},
            "a plan is of one VM",
        ),
    ],
)
def test_wishes_for_several_that_make_no_sense_are_refused(body, words):
    with pytest.raises(BadSpec, match=words):
        parse(SeveralWishes, body, "wishes")
