"""Disk images by the real qemu-img: whole or not there, and nothing of other files."""

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest
from qemu_rig import in_a_loop, machine

from machines import VARIANTS
from sterna.errors import ImageFailed, ImageRefused, QEMUMissing
from sterna.qemu import image

pytestmark = pytest.mark.functional
MIB = 1 << 20


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
@in_a_loop
async def test_a_new_image_is_thin_and_of_its_size(tmp_path: Path, kind: str) -> None:
    await image.create(tmp_path / "disk", kind, 1 << 40)
    found = await image.info(tmp_path / "disk")
    assert (found.format, found.size, found.backing) == (kind, 1 << 40, "")
    assert found.allocated < 2 * MIB
    assert names(tmp_path) == ["disk"]
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o600  # guests keep secrets in them


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
@in_a_loop
async def test_a_copy_holds_the_same_and_can_be_larger(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3 * MIB))
    await image.convert(source, target, kind, None)
    qemu_img("compare", "-f", "raw", "-F", kind, source, target)
    await image.convert(target, tmp_path / "larger", "qcow2", 64 * MIB)
    assert (await image.info(tmp_path / "larger")).size == 64 * MIB
    back = tmp_path / "back"
    await image.convert(tmp_path / "larger", back, "raw", 64 * MIB)
    with back.open("rb") as file:
        assert file.read(3 * MIB) == source.read_bytes()


@in_a_loop
async def test_an_image_in_use_can_be_looked_at(tmp_path: Path) -> None:
    async with machine(VARIANTS["bios"], tmp_path) as vm:
        await vm.qmp.cont()
        assert (await image.info(tmp_path / "tern-0")).format == "qcow2"


@in_a_loop
async def test_images_that_refer_to_other_files_are_refused(tmp_path: Path) -> None:
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_bytes(b"x" * MIB)
    (difference, outside) = tmp_path / "difference", tmp_path / "outside"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", difference)
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", outside, MIB)
    for source in (difference, outside):
        with pytest.raises(ImageRefused, match="it refers to another file") as caught:
            await image.convert(source, target, "qcow2", None)
        assert "qemu-img convert" in caught.value.advice
    strange = tmp_path / "disk.vhd"
    qemu_img("create", "-f", "vpc", strange, 8 * MIB)
    with pytest.raises(ImageRefused, match="it is vpc, not qcow2 or raw"):
        await image.convert(strange, target, "qcow2", None)
    assert not target.exists()


@in_a_loop
async def test_what_fails_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"mine" * MIB)
    with pytest.raises(ImageFailed, match="taken: it exists already"):
        await image.create(taken, "qcow2", MIB)
    with pytest.raises(ImageFailed, match="taken: it exists already"):
        await image.convert(taken, taken, "raw", None)
    assert taken.read_bytes() == b"mine" * MIB
    with pytest.raises(ImageRefused, match=r"holds 4 MiB, more than the 1 MiB wanted"):
        await image.convert(taken, tmp_path / "small", "raw", MIB)
    with pytest.raises(ImageFailed, match=r"could not read .*none: "):
        await image.info(tmp_path / "none")
    with pytest.raises(ImageFailed, match=r"could not create /proc/disk"):
        await image.create(Path("/proc/disk"), "raw", MIB)
    assert names(tmp_path) == ["taken"]


@in_a_loop
async def test_a_name_is_never_taken_for_a_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nbd:localhost:1", "json:{}", "-o"):
        await image.create(Path(name), "raw", MIB)
        assert (await image.info(Path(name))).size == MIB
        assert (tmp_path / name).exists()


def test_a_cancelled_copy_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for _ in range(16):
            file.write(os.urandom(16 * MIB))

    async def give_up() -> None:
        work = asyncio.ensure_future(image.convert(source, tmp_path / "t", "qcow2", None))
        while len(names(tmp_path)) == 1:
            await asyncio.sleep(0.001)
            assert not work.done()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(give_up())
    assert names(tmp_path) == ["source"]


@in_a_loop
async def test_a_host_without_qemu_img_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "BINARY", "no-such-qemu-img")
    with pytest.raises(QEMUMissing) as caught:
        await image.create(tmp_path / "disk", "raw", MIB)
    assert "qemu-utils" in caught.value.advice
