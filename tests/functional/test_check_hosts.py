"""What is wrong with a host is found by its check, mended, and the VM moves then."""

from __future__ import annotations

import pytest

from checking import Administrator, configured, make, odd, restart
from sterna.lab import vm

pytestmark = pytest.mark.functional


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


def test_the_host_where_it_is_is_no_target(lab, admin):
    here = lab.hosts[0]
    make(here)
    found = admin.finds("tern", here)
    assert list(found) == ["host.same"]
    assert lab.hosts[1].name in admin.run(found["host.same"]["command"])


def test_a_host_that_is_down_is_the_only_finding(lab, admin):
    here, there = lab.hosts
    make(here)
    there.stop()
    found = admin.finds("tern", there)
    assert list(found) == ["host.unreachable"]
    there.start()
    there.wait_ready()
    admin.moves("tern", there)


def test_another_api_is_refused_and_another_version_is_told(lab, admin):
    here, there = lab.hosts
    make(here)
    with odd(there, api=2, version="99.0"):
        found = admin.finds("tern", there)
        assert list(found) == ["host.api"]
        assert "API 1" in found["host.api"]["finding"]
        assert "speaks 2" in found["host.api"]["finding"]
        admin.is_refused("tern", there, "speaks 2")
    with odd(there, version="99.0"):
        report = admin.check("tern", there)
        assert [one["id"] for one in report["findings"]] == ["host.version"]
        assert report["outcome"] == "well"
        admin.moves("tern", there)


def test_an_older_version_that_lacks_what_is_asked_is_told_in_a_sentence(lab, admin):
    here, there = lab.hosts
    make(here, pool="shared")
    with odd(there, lacks=["/v1/peer/looks"]):
        found = admin.finds("tern", there)
        assert list(found) == ["host.outdated"]
        assert found["host.outdated"]["finding"] == (
            f"{there.name} runs an older Sterna that does not know POST /v1/peer/looks"
        )
        admin.is_refused("tern", there, "runs an older Sterna")
    admin.moves("tern", there)


def test_a_clock_that_is_wrong_is_told_with_by_how_much(lab, admin):
    here, there = lab.hosts
    make(here)
    for shift, words in ((100, "ahead of"), (-100, "behind")):
        with odd(there, clock=shift):
            found = admin.finds("tern", there)
            assert list(found) == ["host.clock"]
            assert words in found["host.clock"]["finding"]
            assert any(f" {n} s " in found["host.clock"]["finding"] for n in (99, 100, 101))
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_a_host_with_fewer_processors_than_the_vm_has_here(lab, admin):
    here, there = lab.hosts
    make(here, vcpus=2)
    with odd(there, "taskset", "-c", "0"):
        found = admin.finds("tern", there)
        assert list(found) == ["host.processors"]
        assert "has 1" in found["host.processors"]["finding"]
    admin.moves("tern", there)


def test_a_problem_of_the_target_is_told_until_it_is_mended(lab, admin):
    here, there = lab.hosts
    make(here)
    record = there.folder / "state" / "switches" / "broken.json"
    record.write_text("{")
    restart(there)
    found = admin.finds("tern", there)
    assert list(found) == ["host.problems"]
    assert "broken" in found["host.problems"]["finding"]
    assert "broken" in admin.run(found["host.problems"]["command"])
    for aside in record.parent.glob("broken*"):
        aside.unlink()
    restart(there)
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)


def test_memory_that_the_target_cannot_give(lab, admin):
    here, there = lab.hosts
    here.client.post("/v1/vms", vm.spec(lab.guest(), "tern"))
    here.client.post("/v1/vms/tern:start")
    with configured(there, ("[migration]", '[migration]\nreserve_memory = "900GiB"')):
        found = admin.finds("tern", there)
        assert list(found) == ["host.memory"]
        assert "256 MiB" in found["host.memory"]["finding"]
        admin.is_refused("tern", there, there.name)
    admin.moves("tern", there)


def test_files_that_may_not_be_as_large_as_the_guests_memory(lab, admin):
    here, there = lab.hosts
    here.client.post("/v1/vms", vm.spec(lab.guest(), "tern"))
    here.client.post("/v1/vms/tern:start")
    limit = "prlimit", "--fsize=67108864"
    with odd(there, *limit), odd(here, blind=["host.file-limit"]):
        found = admin.finds("tern", there)
        assert list(found) == ["host.file-limit"]
        assert "files of 64 MiB (RLIMIT_FSIZE)" in found["host.file-limit"]["finding"]
        assert admin.ask(f"sterna move tern {there.name}").returncode == 1  # no superstition
    assert admin.finds("tern", there) == {}
    admin.moves("tern", there)
