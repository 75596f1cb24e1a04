"""Files of VMs that others need too: refused as disks, and never removed for another's sake."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sterna.config import Config
from sterna.errors import ImageFailed, VMFilesLeft, VolumeRefused
from sterna.host.registry import Pools
from sterna.model.disk import Image, Volume
from sterna.model.host import Pool
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.qemu import image
from sterna.vms import volumes
from sterna.vms.machine import VM
from sterna.vms.mend import clear_departed, clear_files
from sterna.vms.service import VMs

BASE = Volume(pool="one", volume="debian.qcow2")
TOP = Volume(pool="one", volume="web-vda.qcow2")
touch = Path.touch


def record(name: str, state: OwnershipState = OwnershipState.OWNED, **changes: Any) -> VMRecord:
    spec = VMSpec(name=name, id=f"id-{name}", disks=changes.pop("disks", ()))
    return VMRecord(spec=spec, ownership=Ownership(state=state, epoch=1), **changes)


@pytest.fixture
def vms(tmp_path: Path) -> VMs:
    pools = Pools(tmp_path / "pools", host="a")
    asyncio.run(pools.create(Pool(name="one", path=str(tmp_path / "one"))))
    for volume in (BASE, TOP):
        (tmp_path / "one" / volume.volume).write_text("")
    launcher: Any = SimpleNamespace(
        pools=pools, firmware=lambda _spec: None, remove_files=lambda _spec: None
    )
    config = Config(name="a", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    return VMs(config, launcher, SimpleNamespace(active=lambda _vm: ()))  # type: ignore[arg-type]


def known(vms: VMs, one: VMRecord) -> VM:
    vm = vms.handle(one)
    vms.adopt(vm)
    return vm


def spec_on(top: Volume, *base: Volume) -> VMSpec:
    below = tuple(Image(volume=one.volume) for one in base)
    return VMSpec(
        name="new", id="new", disks=(Disk(name="vda", pool="one", volume=top.volume, base=below),)
    )


def test_a_kept_copy_is_no_disk_and_no_template(vms: VMs) -> None:
    asyncio.run(vms.kept.keep("web", "id-web", [TOP], "moved", 1))
    file = vms.kept.list()[0].files[0]
    kept = Volume(pool="one", volume=file.now)
    for spec in (spec_on(kept), spec_on(Volume(pool="one", volume="new.qcow2"), kept)):
        with pytest.raises(VolumeRefused, match="kept copy"):
            vms.require_unused(spec)


def test_what_a_vm_that_left_is_yet_to_leave_is_no_disk(vms: VMs) -> None:
    known(vms, record("web", OwnershipState.RELEASED, departing=(TOP,)))
    with pytest.raises(VolumeRefused, match="left it behind"):
        vms.require_unused(spec_on(TOP))


def test_files_that_a_vm_left_behind_hold_their_pool_until_all_of_them_are_cleared(
    vms: VMs, tmp_path: Path
) -> None:
    gone = record("web", OwnershipState.RELEASED, departing=(TOP,), leaving=(BASE,))
    vm = known(vms, gone)
    asyncio.run(vms.kept.intend("web", vm.id, [BASE], "storage move", 1))
    assert vms.users_of_pool("one") == ["web"]
    asyncio.run(clear_departed(vm, vms.launcher.pools, vms.kept))
    assert (vm.record.made, vm.record.departing, vm.record.leaving) == ((), (), ())
    (copy,) = vms.kept.list()
    assert copy.files[0].was == BASE
    assert not (tmp_path / "one" / TOP.volume).exists()
    asyncio.run(vms.kept.discard(copy.id))
    assert vms.users_of_pool("one") == []


def test_a_template_that_was_made_for_one_stays_while_another_rests_on_it(
    vms: VMs, tmp_path: Path
) -> None:
    disk = Disk(name="vda", pool="one", volume="db.qcow2", base=(Image(volume=BASE.volume),))
    other = known(vms, record("db", disks=(disk,)))
    vm = known(vms, record("web", made=(BASE, TOP)))
    asyncio.run(clear_files(vm, vms.launcher.pools, vms.kept))
    assert vm.record.made == ()
    assert (tmp_path / "one" / BASE.volume).exists()
    assert not (tmp_path / "one" / TOP.volume).exists()
    other.record = replace(other.record, spec=replace(other.record.spec, disks=()))
    vm.record = replace(vm.record, made=(BASE,))
    asyncio.run(clear_files(vm, vms.launcher.pools, vms.kept))
    assert not (tmp_path / "one" / BASE.volume).exists()


def test_a_file_that_came_meanwhile_is_not_removed_with_a_vm_that_cannot_be_made(
    vms: VMs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    async def create(path: Path, *_rest: Any) -> None:
        if path.name == TOP.volume:  # it appeared after it was looked for
            raise ImageFailed(action="create", path=path, reason="") from FileExistsError()
        touch(path)
        made.append(path.name)

    monkeypatch.setattr(image, "create", create)
    disks = tuple(
        Disk(name=name, pool="one", volume=volume, size=1 << 20)
        for name, volume in (("vda", "new.qcow2"), ("vdb", TOP.volume))
    )

    async def creating() -> None:
        async with vms._new_files(VMSpec(name="new", disks=disks)):
            pass

    with pytest.raises(ImageFailed):
        asyncio.run(creating())
    assert made == ["new.qcow2"]
    assert not (tmp_path / "one" / "new.qcow2").exists()
    assert (tmp_path / "one" / TOP.volume).exists()


def test_files_on_storage_that_is_away_do_not_keep_the_others_from_being_deleted(
    vms: VMs, tmp_path: Path
) -> None:
    disks = (
        Disk(name="vda", pool="gone", volume="web.qcow2"),
        Disk(name="vdb", pool="one", volume=TOP.volume, base=(Image(volume=BASE.volume),)),
    )
    known(vms, record("web", disks=disks))
    with pytest.raises(VMFilesLeft) as caught:
        asyncio.run(vms.delete("web"))
    assert "gone/web.qcow2" in caught.value.message
    assert TOP.volume not in caught.value.message
    assert [path.name for path in (tmp_path / "one").iterdir() if path.suffix == ".qcow2"] == [
        BASE.volume
    ]
    assert vms.find("web") is None


def test_what_was_to_be_kept_is_kept_though_its_vm_is_deleted(vms: VMs, tmp_path: Path) -> None:
    asyncio.run(vms.kept.intend("web", "id-web", [TOP], "moved", 1))
    known(vms, record("web", leaving=(TOP,)))
    asyncio.run(vms.delete("web"))
    (copy,) = vms.kept.list()
    assert (tmp_path / "one" / copy.files[0].now).exists()


def test_a_link_to_a_file_is_no_disk(vms: VMs, tmp_path: Path) -> None:
    (tmp_path / "one" / "link.qcow2").symlink_to(TOP.volume)
    spec = spec_on(Volume(pool="one", volume="link.qcow2"))
    with pytest.raises(VolumeRefused, match="link to web-vda"):
        asyncio.run(volumes.resolve(spec, vms.launcher.pools, "a"))
