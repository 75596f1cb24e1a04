"""What of a VM travels: nothing is lost on the way because two things have one name."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sterna.checkpoint.create import make_overlay
from sterna.errors import MoveRefused, VolumeMissing
from sterna.host.registry import Pools
from sterna.model.disk import Checkpoint, Image, StateFile, Volume
from sterna.model.host import Pool
from sterna.model.move import DiskWish, MoveWishes
from sterna.model.travel import Travel
from sterna.model.vm import CD, Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move.travel import measure, plan
from sterna.qemu import image

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img here")
WISHES = MoveWishes(target="b", pool="fast")


def record(*disks: Disk, **more: object) -> VMRecord:
    owned = Ownership(state=OwnershipState.OWNED, epoch=1)
    return VMRecord(spec=VMSpec(name="web", disks=disks), ownership=owned, **more)  # type: ignore[arg-type]


def planned(record: VMRecord, wishes: MoveWishes = WISHES, *, is_live: bool = False) -> Travel:
    return plan(record, wishes, shared=frozenset(), is_live=is_live)


ONE = Disk(name="vda", pool="one", volume="root.qcow2")
TWO = Disk(name="vdb", pool="two", volume="root.qcow2")


@pytest.mark.parametrize("is_live", [False, True])
def test_two_disks_never_become_one_file(is_live: bool) -> None:
    with pytest.raises(MoveRefused, match=r"one/root.qcow2 and two/root.qcow2 .* fast/root.qcow2"):
        planned(record(ONE, TWO), is_live=is_live)
    apart = MoveWishes(target="b", pool="fast", disks={"vdb": DiskWish(pool="slow")})
    found = planned(record(ONE, TWO), apart)
    assert [str(parcel.offer.place) for parcel in found.files] == [
        "fast/root.qcow2",
        "slow/root.qcow2",
    ]


@pytest.mark.parametrize("is_live", [False, True])
def test_a_file_that_is_missing_is_named_and_what_to_do(tmp_path: Path, is_live: bool) -> None:
    pools = Pools(tmp_path / "pools", host="a")
    asyncio.run(pools.create(Pool(name="one", path=str(tmp_path / "one"))))
    here = record(ONE)
    with pytest.raises(VolumeMissing, match=r"one/root.qcow2, which web needs") as caught:
        asyncio.run(measure(planned(here, is_live=is_live), here, pools, "a"))
    assert caught.value.advice.endswith("sterna disk check web")


def test_two_templates_of_one_name_are_not_taken_for_one() -> None:
    base = (Image(volume="debian.qcow2"),)
    first = Disk(name="vda", pool="one", volume="a.qcow2", base=base)
    second = Disk(name="vdb", pool="two", volume="b.qcow2", base=base)
    with pytest.raises(MoveRefused, match=r"both become fast/debian.qcow2"):
        planned(record(first, second), is_live=True)
    same = Disk(name="vdb", pool="one", volume="b.qcow2", base=base)
    places = [parcel.offer.place.volume for parcel in planned(record(first, same)).files]
    assert sorted(places) == ["a.qcow2", "b.qcow2", "debian.qcow2"]


def test_memory_that_a_vm_goes_on_from_goes_once() -> None:
    state = StateFile(pool="one", volume="m.memory", size=1, sha256="0" * 64, accel="tcg")
    point = Checkpoint(id="a1", name="p", created="", images={}, memory=state)
    found = planned(record(ONE, checkpoints=(point,), at="a1", saved=state))
    assert [parcel.offer.place.volume for parcel in found.files] == ["root.qcow2", "m.memory"]


def test_a_read_only_disk_is_not_torn_from_what_it_rests_on() -> None:
    """It goes as a file, so that it would rest on nothing there and show zeroes."""
    disk = Disk(
        name="vda", pool="one", volume="a.qcow2", read_only=True, base=(Image(volume="t.qcow2"),)
    )
    with pytest.raises(MoveRefused, match="read-only"):
        planned(record(disk), MoveWishes(target="b", flatten=True), is_live=True)


@needs_qemu_img
def test_what_a_guest_wrote_into_its_disk_is_not_taken_for_a_header(tmp_path: Path) -> None:
    """A raw disk of 1 MiB that begins like a qcow2 image of 1 TiB is a disk of 1 MiB."""
    pools = Pools(tmp_path / "pools", host="a")
    asyncio.run(pools.create(Pool(name="one", path=str(tmp_path / "one"))))
    fake, disk = tmp_path / "fake", tmp_path / "one" / "v.raw"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(fake), "1T"]
    subprocess.run(command, check=True)
    disk.write_bytes(fake.read_bytes().ljust(1 << 20, b"\0")[: 1 << 20])
    known = record(Disk(name="vda", pool="one", volume="v.raw", format="raw"))
    found = asyncio.run(measure(planned(known, is_live=True), known, pools, "a"))
    assert found.mirrors[0].offer.size == 1 << 20
    assert found.leaving == (Volume(pool="one", volume="v.raw"),)


@needs_qemu_img
def test_snapshots_within_an_image_are_found(tmp_path: Path) -> None:
    pools = Pools(tmp_path / "pools", host="a")
    asyncio.run(pools.create(Pool(name="one", path=str(tmp_path / "one"))))
    path = str(tmp_path / "one" / "root.qcow2")
    for words in (["create", "-q", "-f", "qcow2", path, "1M"], ["snapshot", "-c", "before", path]):
        subprocess.run(["qemu-img", *words], check=True)
    known = record(ONE)
    found = asyncio.run(measure(planned(known, is_live=True), known, pools, "a"))
    assert found.mirrors[0].snapshots == ("before",)


@needs_qemu_img
def test_a_checkpoint_does_not_take_it_for_one_either(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "f"), "1T"], check=True
    )
    (folder / "v.raw").write_bytes((tmp_path / "f").read_bytes().ljust(1 << 20, b"\0"))
    pools = SimpleNamespace(volume_path=lambda _pool, volume: folder / volume)
    vms: Any = SimpleNamespace(launcher=SimpleNamespace(pools=pools))
    new = Volume(pool="one", volume="new.qcow2")
    asyncio.run(make_overlay(vms, new, Image(volume="v.raw", format="raw")))
    assert asyncio.run(image.size_of(folder / "new.qcow2", "qcow2")) == 1 << 20


ISO = CD(name="cd0", pool="isos", volume="debian.iso")


def test_a_cd_is_carried_like_a_template_and_never_leaves() -> None:
    cds = (ISO, CD(name="cd1"), CD(name="cd2", pool="isos", volume="debian.iso"))
    owned = Ownership(state=OwnershipState.OWNED, epoch=1)
    here = VMRecord(spec=VMSpec(name="web", disks=(ONE,), cds=cds), ownership=owned)
    found = plan(here, WISHES, shared=frozenset(), is_live=False, known={"isos", "fast"})
    first, *_ = found.files  # before the disks: one that differs there ends the move at once
    assert (str(first.offer.place), first.offer.is_base) == ("isos/debian.iso", True)
    assert [parcel.source.volume for parcel in found.files].count("debian.iso") == 1
    assert [one.drive for one in found.media] == ["cd0", "cd2"]
    assert "debian.iso" not in {volume.volume for volume in found.leaving}
    assert found.spec.cds == here.spec.cds

    without = plan(here, WISHES, shared=frozenset(), is_live=False, known={"fast"})
    assert {cd.pool for cd in without.spec.cds} == {"fast", ""}  # no pool of that name there
    stays = plan(here, WISHES, shared=frozenset({"isos"}), is_live=False)
    assert stays.spec.cds == here.spec.cds
    assert {parcel.source.volume for parcel in stays.files} == {"root.qcow2"}
    assert not any(one.travels for one in stays.media)


def test_a_cd_that_is_gone_is_told_and_not_sent(tmp_path: Path) -> None:
    pools = Pools(tmp_path / "pools", host="a")
    asyncio.run(pools.create(Pool(name="isos", path=str(tmp_path / "isos"))))
    spec = VMSpec(name="web", cds=(ISO,))
    here = VMRecord(spec=spec, ownership=Ownership(state=OwnershipState.OWNED, epoch=1))

    def measured() -> Travel:
        return asyncio.run(measure(planned(here), here, pools, "a"))

    gone = measured()
    assert ([one.size for one in gone.media], gone.files) == ([None], ())
    (tmp_path / "isos" / "debian.iso").write_bytes(b"x" * 4096)
    found = measured()
    assert ([one.size for one in found.media], len(found.files)) == ([4096], 1)
