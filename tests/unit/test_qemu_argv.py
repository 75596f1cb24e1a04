"""From a spec to QEMU's command line: what must hold for every machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from machines import FULL, SMALL, VARIANTS, Variant, disks, nics
from sterna.errors import BadSpec, FirmwareMissing
from sterna.model.vm import Firmware
from sterna.qemu import argv
from sterna.qemu.argv import FirmwareFiles, RunPaths

RUN = Path("/run/vm")


def values(arguments: list[str], option: str) -> list[str]:
    return [arguments[i + 1] for i, one in enumerate(arguments) if one == option]


def address(arguments: list[str], device: str) -> str:
    """Where a device is, down to its root port's own place."""
    devices = {
        dict(part.partition("=")[::2] for part in one.split(","))["id"]: one
        for one in values(arguments, "-device")
        if ",id=" in one
    }
    found = dict(part.partition("=")[::2] for part in devices[device].split(","))
    port = devices.get(found["bus"], "")
    return f"{found['addr']} at {dict(p.partition('=')[::2] for p in port.split(',')).get('addr')}"


@pytest.mark.parametrize("name", VARIANTS)
def test_no_machine_runs_by_itself_or_without_its_cage(name: str) -> None:
    arguments = VARIANTS[name].build(RUN)
    assert "-S" in arguments
    assert values(arguments, "-sandbox") == [argv.SANDBOX]
    assert "-nodefaults" in arguments


def test_both_ends_of_a_move_differ_by_nothing_but_the_waiting() -> None:
    source = Variant(FULL).build(RUN)
    target = Variant(FULL, incoming=True).build(RUN)
    assert target == [*source, "-incoming", "defer"]


def test_devices_stay_where_they_are_when_others_are_added() -> None:
    few = Variant(replace(FULL, nics=nics(1), disks=disks(1))).build(RUN)
    more = Variant(replace(FULL, nics=nics(5), disks=disks(9))).build(RUN)
    for device in ("nic-net0", "blk-vda", "vga", "vserial", "rng", "balloon"):
        assert address(few, device) == address(more, device), device
    fewer = Variant(replace(FULL, graphics=False)).build(RUN)
    assert address(few, "balloon") == address(fewer, "balloon")


def test_each_port_has_a_place_and_a_chassis_of_its_own() -> None:
    arguments = Variant(replace(SMALL, nics=nics(46), disks=disks(26))).build(RUN)
    ports = [one.split(",") for one in values(arguments, "-device") if one.startswith("pcie-root")]
    for key in ("addr=", "chassis=", "id="):
        found = [part for port in ports for part in port if part.startswith(key)]
        assert len(found) == len(set(found)) == 46 + 26 + 4


def test_too_many_devices_are_refused_in_a_sentence() -> None:
    with pytest.raises(BadSpec, match="47 are more than a machine has ports for"):
        Variant(replace(SMALL, nics=nics(47))).build(RUN)


def test_a_format_is_never_guessed() -> None:
    for name, variant in VARIANTS.items():
        nodes = [json.loads(one) for one in values(variant.build(RUN), "-blockdev")]
        assert {node["driver"] for node in nodes} <= {"file", "raw", "qcow2"}, name
        assert "-drive" not in variant.build(RUN)


def test_a_comma_in_a_path_stays_in_the_path() -> None:
    arguments = VARIANTS["comma-in-path"].build(RUN)
    assert "path=/run/vm/a,,b/qmp,server" in " ".join(values(arguments, "-chardev"))
    assert json.loads(values(arguments, "-blockdev")[0])["filename"] == "/run/vm/a,b/tern-0"


def test_a_level_is_given_whole_or_not_at_all_and_a_model_as_the_emulator_can() -> None:
    for name in ("kvm", "small"):
        assert values(VARIANTS[name].build(RUN), "-cpu")[0].endswith("ssse3=on,enforce=on")
    assert "enforce" not in values(VARIANTS["model"].build(RUN), "-cpu")[0]


def test_features_over_a_level_are_added_and_masked_ones_taken_from_a_model() -> None:
    spec = replace(SMALL, cpu_features=("aes", "avx"))
    assert ",ssse3=on,aes=on,avx=on,enforce=on" in values(Variant(spec).build(RUN), "-cpu")[0]
    model = Variant(replace(SMALL, cpu="max")).build(RUN, masked=("avx2",))
    assert values(model, "-cpu") == ["max,avx2=off"]
    assert values(Variant(SMALL).build(RUN, masked=("avx2",)), "-cpu") == values(
        Variant(SMALL).build(RUN), "-cpu"
    )


def test_a_processor_that_cannot_be_given_is_refused() -> None:
    with pytest.raises(BadSpec, match="needs KVM"):
        Variant(replace(SMALL, cpu="host")).build(RUN)
    with pytest.raises(BadSpec, match="keeps avx2 from its guests"):
        Variant(replace(SMALL, cpu="x86-64-v3")).build(RUN, masked=("avx2", "sha-ni"))
    with pytest.raises(ValueError, match="not the name of a processor model"):
        replace(SMALL, cpu="qemu64,+svm")
    with pytest.raises(ValueError, match="not to max"):
        replace(SMALL, cpu="max", cpu_features=("avx",))


def test_uefi_without_its_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SMALL, firmware=Firmware.UEFI)
    with pytest.raises(BadSpec, match="UEFI needs its firmware"):
        Variant(spec).build(RUN, firmware=None)
    monkeypatch.setattr(argv, "FIRMWARE_BUILDS", (("/nowhere/code.fd", "/nowhere/vars.fd"),))
    with pytest.raises(FirmwareMissing) as caught:
        FirmwareFiles.find(RUN / "variables.fd")
    assert "apt-get install ovmf" in caught.value.advice


def test_socket_names_leave_room_for_the_folder() -> None:
    paths = RunPaths(Path("/var/lib/sterna-lab/a-long-lab/hv-a/run/vms") / SMALL.id)
    sockets = (paths.control, paths.oob, paths.serial, paths.vnc, paths.agent)
    assert all(len(str(path)) < 107 for path in sockets)
