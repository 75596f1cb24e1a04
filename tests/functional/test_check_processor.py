"""Processors: what the guest itself finds, on hosts of which one gives less than the other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from checking import WARNED, Administrator, configured, odd
from sterna.lab import vm
from sterna.lab.console import GuestConsole

pytestmark = pytest.mark.functional
WITHOUT_AVX2 = ("[qemu]\n", '[qemu]\ncpu_mask = ["avx2"]\n')


def create(lab: Any, cpu: str, **more: Any) -> None:
    spec = vm.spec(lab.guest(), "tern", **more) | {"cpu": cpu}
    lab.hosts[0].client.post("/v1/vms", spec)


def asked(host: Any, order: str = "cpu") -> dict[str, Any]:
    """The guest's own answer, on the processor that it has now."""

    async def ask() -> dict[str, Any]:
        async with GuestConsole(Path(host.client.get("/v1/vms/tern")["console"])) as console:
            await console.ready()
            return await console.ask(order)

    return asyncio.run(ask())


def test_a_guest_that_sees_more_than_the_target_gives_goes_off_and_starts_with_what_both_have(lab):
    here, there = lab.hosts
    admin, other = Administrator(here), Administrator(there)
    with configured(there, WITHOUT_AVX2):
        create(lab, "x86-64-v3")
        admin.run("sterna vm start tern")
        assert asked(here)["cpu"]["avx2"]
        found = admin.finds("tern", there)
        assert list(found) == ["processor.features"]
        blocker = found["processor.features"]
        assert "avx2, which hv-b cannot give (qemu.cpu_mask there has avx2)" in blocker["finding"]
        assert "--cpu-compat x86-64-v2" in blocker["fix"]
        admin.is_refused("tern", there, "processor.features")
        admin.run(blocker["command"])
        # It may go now; but it could not be started there.
        (warning,) = admin.check("tern", there)["findings"]
        assert (warning["id"], warning["severity"]) == ("processor.cannot-start", "warning")
        assert "lacks avx2" in warning["finding"]
        admin.run("sterna move tern hv-b", WARNED)
        refused = other.ask("sterna vm start tern")
        assert refused.returncode == 3
        assert "lacks avx2" in refused.stderr
        other.run(warning["command"])
        other.run("sterna vm start tern")
        assert (asked(there)["cpu"]["ssse3"], asked(there)["cpu"]["avx2"]) == (True, False)
        assert other.check("tern", here)["findings"] == []
        other.moves("tern", here)
        assert admin.check("tern", there)["findings"] == []


def test_a_model_that_differs_is_told_and_what_was_set_while_it_ran_comes_with_its_next_start(lab):
    here, there = lab.hosts
    admin, other = Administrator(here), Administrator(there)
    create(lab, "max")
    with configured(here, WITHOUT_AVX2):
        admin.run("sterna vm start tern")
        assert not asked(here)["cpu"]["avx2"]
        (warning,) = admin.check("tern", there)["findings"]
        assert (warning["id"], warning["severity"]) == ("processor.changes", "warning")
        assert "would find avx2 too" in warning["finding"]
        admin.run(warning["command"])
        view = here.client.get("/v1/vms/tern")
        assert (view["spec"]["cpu"], view["cpu_next"]["model"]) == ("max", "x86-64-v2")
        admin.run("sterna move tern hv-b", WARNED)
        # What was warned of: the processor has changed under the guest that runs.
        assert asked(there)["cpu"]["avx2"]
        assert other.finds("tern", here)["processor.features"]["severity"] == "blocker"
        assert there.client.get("/v1/vms/tern")["cpu_next"]["model"] == "x86-64-v2"
        other.run("sterna vm stop tern")
        other.run("sterna vm start tern")
        view = there.client.get("/v1/vms/tern")
        assert (view["spec"]["cpu"], view["cpu_next"]) == ("x86-64-v2", None)
        cpu = asked(there)["cpu"]
        assert (cpu["ssse3"], cpu["avx"]) == (True, False)
        assert other.check("tern", here)["findings"] == []


def test_what_all_hosts_share_is_computed_set_and_the_same_on_each(lab):
    here, there = lab.hosts
    admin, other = Administrator(here), Administrator(there)
    with configured(there, WITHOUT_AVX2):
        found = here.client.get("/v1/baseline", {"host": [here.name, there.name]})
        assert found["level"] == "x86-64-v2"
        assert found["levels"] == {here.name: "x86-64-v3", there.name: "x86-64-v2"}
        assert found["beyond"] == {here.name: ["avx2"], there.name: []}
        assert {"aes", "avx"} < set(found["features"])
        shown = admin.run(f"sterna host baseline {here.name} {there.name}")
        assert f"sterna vm set VM --cpu-compat shared --share-with {here.name}" in shown
        create(lab, "x86-64-v3")
        admin.run("sterna vm set tern --cpu-compat shared")
        admin.run("sterna vm start tern")
        before = asked(here)["cpu"]
        assert (before["aes"], before["avx"], before["avx2"]) == (True, True, False)
        assert admin.check("tern", there)["findings"] == []
        admin.moves("tern", there)
        assert asked(there)["cpu"] == before
        assert other.check("tern", here)["findings"] == []
        # No host of the lab emulates that.
        refused = admin.ask("sterna --host hv-b vm set tern --cpu-compat x86-64-v4")
        assert refused.returncode == 3
        assert "avx512f" in refused.stderr


def test_a_move_that_the_check_forbids_takes_the_feature_away_from_the_guest_that_uses_it(lab):
    here, there = lab.hosts
    create(lab, "max")
    admin = Administrator(here)
    with configured(there, WITHOUT_AVX2), odd(here, blind=["processor.features"]):
        admin.run("sterna vm start tern")
        assert asked(here)["cpu"]["avx2"]
        assert "processor.features" in admin.finds("tern", there)
        admin.ask(f"sterna move tern {there.name}")
        assert not asked(there)["cpu"]["avx2"]


def test_a_saved_state_does_not_go_where_the_processor_that_it_saw_cannot_be_given(lab):
    here, there = lab.hosts
    admin, other = Administrator(here), Administrator(there)
    create(lab, "x86-64-v3", load=vm.Load(disk_blocks_s=1))
    admin.run("sterna vm start tern")
    assert asked(here)["cpu"]["avx2"]
    admin.run("sterna vm save tern")
    with configured(there, WITHOUT_AVX2):
        found = admin.finds("tern", there)
        assert set(found) == {"processor.saved-features", "processor.cannot-start"}
        blocker = found["processor.saved-features"]
        assert "needs the processor x86-64-v3, and hv-b lacks avx2" in blocker["finding"]
        admin.is_refused("tern", there, "processor.saved-features")
        with odd(here, blind=["processor.saved-features"]):  # no superstition: it is no use there
            admin.run(f"sterna move tern {there.name}", WARNED)
        refused = other.ask("sterna vm restore tern")
        assert refused.returncode != 0
        assert "avx2" in refused.stderr
        other.moves("tern", here)
        admin.run(blocker["command"])
        admin.run(f"sterna move tern {there.name}", WARNED)  # off; and told that it cannot start
    assert there.client.get("/v1/vms/tern")["state"] == "off"


def test_memory_of_a_checkpoint_does_not_go_into_another_machine(lab):
    here = lab.hosts[0]
    admin = Administrator(here)
    spec = vm.spec(lab.guest(), "tern", load=vm.Load(disk_blocks_s=1))
    here.client.post("/v1/vms", spec | {"machine": "pc-q35-7.1"})
    admin.run("sterna vm start tern")
    asked(here, "status")
    admin.run("sterna vm checkpoint create tern one")
    admin.run("sterna vm save tern")
    saved = admin.ask("sterna vm upgrade-version tern --to pc-q35-7.2 --yes")
    assert saved.returncode == 3
    admin.run("sterna vm set tern --cpu-compat x86-64-v3")  # waits: it goes on as it was
    assert here.client.get("/v1/vms/tern")["cpu_next"]["model"] == "x86-64-v3"
    admin.run("sterna vm restore tern")
    assert not asked(here)["cpu"]["avx2"]
    admin.run("sterna vm set tern --cpu-compat x86-64-v2")
    admin.run("sterna vm stop tern")
    raised = admin.ask("sterna vm upgrade-version tern --to pc-q35-7.2 --yes")
    assert raised.returncode == 0
    assert "the memory of checkpoints is of no use then: one" in raised.stderr
    refused = admin.ask("sterna vm checkpoint apply tern one --force")
    assert (refused.returncode, "pc-q35-7.1" in refused.stderr) == (3, True), refused.stderr
    admin.run("sterna vm checkpoint apply tern one --no-memory --force")
