"""The registry of checks, the plan that comes of them, and what a failure is told as."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sterna import checks
from sterna.checks import plan, registry
from sterna.checks.registry import BLOCKER, CHECKS, INFO, WARNING
from sterna.errors import HostUnreachable, NotAllowed, NotMutual
from sterna.model.check import Check
from sterna.model.move import Approved

HERE = Path(__file__).parent.parent
# Not to be produced by hosts on one machine, and so tested with made-up facts alone.
NOT_PRODUCED = {
    "network.vlan": "two kernels, one of which cannot tag",
    "processor.model": "a processor that gives all of a model which only one of two QEMUs knows",
    "processor.vendor": "KVM on processors of two makers: the emulator is of any make",
    "qemu.accel": "a machine with KVM",
    "qemu.checkpoint-accel": "a machine with KVM",
    "qemu.saved-accel": "a machine with KVM",
}


@pytest.mark.parametrize("one", CHECKS.values(), ids=lambda one: one.id)
def test_a_check_has_an_area_and_says_what_it_makes_sure_of(one):
    assert re.fullmatch(r"[a-z]+(\.[a-z-]+)+", one.id)
    assert one.area in checks.__all__
    assert one.meaning[0].isupper()
    assert not one.meaning.endswith(".")


def test_two_checks_cannot_have_one_id():
    with pytest.raises(ValueError, match=r"host\.same"):
        registry.check("host.same", BLOCKER, "Again")(lambda _: iter(()))


def test_the_worst_comes_first_and_nothing_twice():
    def one(severity):
        return Check(id=str(severity), severity=severity, finding="it")

    found = [one(INFO), one(WARNING), one(BLOCKER), one(WARNING)]
    assert [found.severity for found in registry.in_order(found)] == [BLOCKER, WARNING, INFO]


def unreachable(reason: str) -> HostUnreachable:
    return HostUnreachable(peer="hv-b", url="https://192.0.2.1:7443", reason=reason)


@pytest.mark.parametrize(
    ("error", "identity"),
    [
        (unreachable("certificate has expired"), "trust.certificate-expired"),
        (unreachable("self-signed certificate (_ssl.c:992)"), "trust.certificate-other"),
        (NotMutual(peer="b", url="https://b"), "trust.not-mutual"),
        (unreachable("connection refused"), "host.unreachable"),
        (
            NotAllowed(what="this", reason="its certificate is not known", fix="-"),
            "trust.not-mutual",
        ),
    ],
)
def test_an_error_that_ends_the_look_is_told_by_what_it_says(error, identity):
    found = registry.told(error)
    assert (found.id, found.severity) == (identity, BLOCKER)
    assert "{" not in found.fix


def test_a_plan_names_every_fact_that_has_changed_and_every_finding_that_is_new():
    approved = Approved(facts={"a": "1", "b": "2", "c": "3"}, findings=("old",))
    now = {"a": "1", "b": "other", "d": "4"}
    found = [
        Check(id="old", severity=WARNING, finding="it was there"),
        Check(id="new", severity=WARNING, finding="it was not"),
        Check(id="note", severity=INFO, finding="nobody minds"),
    ]
    changes = list(plan.changes(approved, now, found))
    assert [change.split()[0] for change in changes] == ["b", "c", "d", "new"]
    assert list(plan.changes(Approved(facts=now, findings=("old", "new")), now, found)) == []


def test_every_check_is_produced_in_the_lab_by_some_test():
    tests = "".join(file.read_text() for file in (HERE / "functional").glob("test_*.py"))
    assert {one for one in CHECKS if f'"{one}"' not in tests} <= set(NOT_PRODUCED)
