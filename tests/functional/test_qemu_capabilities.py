"""What a QEMU can do, and KVM or emulation, asked of the real thing."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from qemu_rig import BINARY, in_a_loop

from sterna.config import QEMU
from sterna.errors import QEMUMissing, QEMUUnsupported
from sterna.lab.guest import image
from sterna.qemu import capabilities, proof
from sterna.qemu.capabilities import choose_accel, probe

pytestmark = pytest.mark.functional


@pytest.fixture(scope="session")
def kernel() -> Path:
    return image.build().kernel


@in_a_loop
async def test_qemu_is_asked_once(tmp_path: Path) -> None:
    found = await probe(BINARY, (), tmp_path)
    assert found.binary == shutil.which(BINARY)
    assert found.default_machine in found.machines
    assert all(name.startswith("pc-q35-") for name in found.machines)
    assert found.machines.index("pc-q35-7.2") < found.machines.index("pc-q35-6.2")
    assert {"qemu64", "max"} <= set(found.cpu_models)
    assert {"events", "return-path", "pause-before-switchover", "late-block-activate"} <= (
        found.migration_capabilities
    )
    assert {"max-bandwidth", "downtime-limit"} <= found.migration_parameters
    assert {"yank", "announce-self", "migrate-continue"} <= found.commands
    kept = tmp_path / os.listdir(tmp_path)[0]  # noqa: PTH208 - blocks no longer than a test may
    assert await probe(BINARY, (), tmp_path) == found
    kept.write_text(kept.read_text().replace(found.version, "99.9.9"))
    assert (await probe(BINARY, (), tmp_path)).version == "99.9.9"  # not asked again
    for damage in ("", "{}", '{"format": 1}', kept.read_text().replace('"sandbox"', '"x"')):
        kept.write_text(damage)
        assert await probe(BINARY, (), tmp_path) == found


@in_a_loop
async def test_another_binary_or_other_arguments_are_asked_anew(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    program = tmp_path / "qemu"
    program.write_text(f'#!/bin/sh\nexec {BINARY} "$@"\n')
    program.chmod(0o755)
    for arguments in ((), ("-msg", "timestamp=on")):
        await probe(str(program), arguments, cache)
    program.write_text(f'#!/bin/sh\n# newer\nexec {BINARY} "$@"\n')
    await probe(str(program), (), cache)
    assert len(list(cache.iterdir())) == 3


@in_a_loop
async def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert (await probe(BINARY, (), blocked / "cache")).binary


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no such program"),
        ("echo no more disk space >&2; exit 1", "it does not work: no more disk space"),
        ("kill -SEGV $$", "it does not work"),
    ],
)
@in_a_loop
async def test_a_binary_that_is_no_qemu_is_named_with_its_words(
    tmp_path: Path, script: str | None, reason: str
) -> None:
    program = tmp_path / "qemu"
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    with pytest.raises(QEMUMissing, match=reason) as caught:
        await probe(str(program))
    assert str(program) in caught.value.message


# ---- KVM or emulation ----------------------------------------------------------------------


@in_a_loop
async def test_a_kernel_that_comes_up_is_the_proof(kernel: Path, leaves_nothing: None) -> None:
    assert await proof.boots(BINARY, "tcg", kernel, timeout_s=60) == (
        True,
        "a guest booted kernel under TCG",
    )


@in_a_loop
async def test_a_guest_that_hangs_is_no_proof(kernel: Path, leaves_nothing: None) -> None:
    proven, reason = await proof.boots(BINARY, "tcg", kernel, timeout_s=0.3)
    assert not proven
    assert "under TCG did not: it was not through after 0.3 s" in reason


@in_a_loop
async def test_something_else_than_a_kernel_is_no_proof(
    tmp_path: Path, leaves_nothing: None
) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"no kernel" * 1000)
    proven, reason = await proof.boots(BINARY, "tcg", tmp_path / "vmlinuz", timeout_s=20)
    assert not proven
    assert "did not: QEMU ended" in reason


@in_a_loop
async def test_auto_takes_kvm_exactly_where_a_guest_runs_under_it(
    kernel: Path, tmp_path: Path, leaves_nothing: None
) -> None:
    said: list[str] = []
    wishes = QEMU(probe_kernel=kernel)
    accel, reason = await choose_accel(wishes, tmp_path, said.append)
    works = (
        os.access("/dev/kvm", os.R_OK | os.W_OK) and (await proof.boots(BINARY, "kvm", kernel))[0]
    )
    assert accel == ("kvm" if works else "tcg")
    assert reason.startswith("a guest booted" if works else "no KVM: ")
    count = len(said)
    assert await choose_accel(wishes, tmp_path, said.append) == (accel, reason)
    assert len(said) == count <= 1  # kept for this boot of the host
    if works:
        assert await choose_accel(QEMU(accel="kvm", probe_kernel=kernel), tmp_path)
    else:
        with pytest.raises(QEMUUnsupported, match="KVM is demanded, but") as caught:
            await choose_accel(QEMU(accel="kvm", probe_kernel=kernel), tmp_path)
        assert "accel" in caught.value.advice


@in_a_loop
async def test_without_a_device_or_a_kernel_there_is_no_kvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await choose_accel(QEMU(accel="tcg")) == ("tcg", "the configuration says so")
    monkeypatch.setattr(proof, "BOOT_DIR", tmp_path)
    monkeypatch.setattr(capabilities, "DEVICE", tmp_path / "kvm")
    accel, reason = await choose_accel(QEMU())
    assert (accel, reason) == ("tcg", f"no KVM: there is no {tmp_path}/kvm")
    (tmp_path / "kvm").touch()
    accel, reason = await choose_accel(QEMU())
    assert accel == "tcg"
    assert "no kernel to prove it with" in reason
    assert (await choose_accel(QEMU(accel="kvm")))[0] == "kvm"  # believed, and said so
    accel, reason = await choose_accel(QEMU(probe_kernel=tmp_path / "none"))
    assert accel == "tcg"
    assert "is not readable" in reason


def test_the_newest_kernel_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    assert proof.newest_kernel(tmp_path) is None
    for name in ("vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-12-amd64", "initrd.img-6.9"):
        (tmp_path / name).touch()
    found = proof.newest_kernel(tmp_path)
    assert found is not None
    assert found.name == "vmlinuz-6.1.0-12-amd64"


@pytest.fixture
def leaves_nothing(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Nothing of a probe stays: neither files nor a process of ours, zombies included."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = children()
    yield
    assert list(folder.iterdir()) == []
    assert children() <= before


def children() -> set[str]:
    """Process ids of this process's children; a lab that tests share may have some."""
    return {
        pid
        for listing in Path("/proc/self/task").glob("*/children")
        for pid in listing.read_text().split()
    }


def test_cancelling_a_probe_leaves_nothing(kernel: Path, leaves_nothing: None) -> None:
    async def give_up() -> None:
        async with asyncio.timeout(0.3):
            await proof.boots(BINARY, "tcg", kernel, timeout_s=60)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
