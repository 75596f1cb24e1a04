"""What a host says no to when a VM wants to come, and what its former life there left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sterna.config import Config
from sterna.errors import NoRoom, VMDamaged
from sterna.host.parts import Parts
from sterna.host.registry import Pools
from sterna.host.store import Damaged
from sterna.model.disk import Volume
from sterna.model.host import Pool
from sterna.model.reservation import FileOffer, MirrorOffer, Reservation
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move.berth import Berth
from sterna.move.incoming import Incoming
from sterna.vms.service import VMs

MIB = 1 << 20


@pytest.fixture
def vms(tmp_path: Path) -> VMs:
    pools = Pools(tmp_path / "pools", host="b")
    asyncio.run(pools.create(Pool(name="one", path=str(tmp_path / "one"))))
    launcher: Any = SimpleNamespace(pools=pools)
    config = Config(name="b", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    return VMs(config, launcher, SimpleNamespace(active=lambda _vm: ()))  # type: ignore[arg-type]


def of(name: str, *, files: int = 0, mirror: int = 0) -> Reservation:
    """The VM `name`, with so many bytes in a file and in a disk that is mirrored."""
    volume = f"{name}.raw"
    return Reservation(
        operation=f"op-{name}",
        epoch=2,
        source="a",
        spec=VMSpec(
            name=name, id=f"id-{name}", disks=(Disk(name="vda", pool="one", volume=volume),)
        ),
        live=bool(mirror),
        paused=False,
        accel="",
        files=(FileOffer(place=Volume(pool="one", volume=volume), size=files, allocated=files),)
        if files
        else (),
        mirrors=(MirrorOffer(disk="vda", size=mirror, allocated=mirror),) if mirror else (),
    )


def facts(free: int) -> Any:
    return SimpleNamespace(pools=[SimpleNamespace(pool=SimpleNamespace(name="one"), free=free)])


@pytest.mark.parametrize("kind", ["files", "mirror"])
def test_room_that_was_promised_to_one_is_not_promised_to_another(
    vms: VMs, tmp_path: Path, kind: str
) -> None:
    parts, promised = Parts(vms.launcher.pools, host="b"), [of("web", **{kind: 6 * MIB})]
    berth = Berth(vms, parts, lambda: promised)
    berth._room(of("db", **{kind: 6 * MIB}), facts(20 * MIB))
    berth._room(of("off"), facts(MIB))  # needs none
    with pytest.raises(NoRoom):
        berth._room(of("db", **{kind: 6 * MIB}), facts(10 * MIB))
    # What has arrived is not free any more, and not lacking.
    (tmp_path / "one" / "web.raw").write_bytes(b"x" * 7 * MIB)
    berth._room(of("db", **{kind: 6 * MIB}), facts(10 * MIB))


def test_a_vm_whose_record_here_is_damaged_does_not_come(vms: VMs, tmp_path: Path) -> None:
    berth = Berth(vms, Parts(vms.launcher.pools, host="b"))
    berth._name(of("web"), facts(0))
    vms.damaged = [Damaged(key="id-web", path=tmp_path / "id-web.damaged", reason="cut short")]
    with pytest.raises(VMDamaged, match="cut short"):
        berth._name(of("web"), facts(0))


def test_what_a_former_life_left_is_cleared_before_the_vm_returns(vms: VMs, tmp_path: Path) -> None:
    async def gather() -> Any:
        return facts(MIB)

    file = Volume(pool="one", volume="web.raw")
    left = tmp_path / "one" / "web.raw"
    left.write_text("former")
    record = VMRecord(
        spec=VMSpec(name="web", id="id-web"),
        ownership=Ownership(state=OwnershipState.RELEASED, epoch=1),
        departing=(file,),
    )
    vm = vms.handle(record)
    vms.adopt(vm)
    incoming = Incoming(vms, gather)
    (tmp_path / "one").rename(tmp_path / "unmounted")
    (problem,) = asyncio.run(incoming.check(of("web", files=1)))
    assert "one" in problem.finding
    (tmp_path / "unmounted").rename(tmp_path / "one")
    vm.doing = "sending memory to a"
    assert {found.id for found in asyncio.run(incoming.check(of("web", files=1)))} == {
        "vm.busy",
        "volume.exists",
    }
    vm.doing = ""
    assert asyncio.run(incoming.check(of("web", files=1))) == []
    assert not left.exists()
    assert vm.record == replace(record, departing=())
