"""What an unfinished step left in a QEMU is brought to what the record says. No guest: QEMU alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from qemu_rig import in_a_loop

from sterna.host.registry import Pools
from sterna.host.store import Store
from sterna.model.disk import Checkpoint, Image, Volume, node_name
from sterna.model.host import Pool
from sterna.model.move import StorageWishes
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move.storage.disks import Switchover
from sterna.move.storage.plan import plan
from sterna.qemu import nodes, process
from sterna.qemu.argv import monitors
from sterna.qemu.blocks import Blocks
from sterna.qemu.commands import Monitor
from sterna.qemu.session import Session
from sterna.vms import chain
from sterna.vms.kept import Kept
from sterna.vms.machine import VM
from sterna.vms.mend import mend

pytestmark = pytest.mark.functional

NEW, OLD = Volume(pool="new", volume="d.qcow2"), Volume(pool="old", volume="d.qcow2")
DISK = Disk(name="vda", pool="old", volume="d.qcow2")


class Rig:
    """One VM of this host with one disk, its QEMU, and two pools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pools = Pools(folder / "pools", host="a")
        self.kept = Kept(folder / "kept", self.pools)
        spec = VMSpec(name="tern", id="9d2b8f5e-6a51-4f0c-8d5e-1f2a3b4c5d6e", disks=(DISK,))
        owned = Ownership(state=OwnershipState.OWNED, epoch=1)
        record = VMRecord(spec=spec, ownership=owned)
        self.vm = VM(record, Store(folder / "vms", VMRecord), folder / "run")

    @property
    def blocks(self) -> Blocks:
        return self.vm.blocks

    def image(self, place: Volume, below: str = "") -> None:
        on = ["-b", below, "-F", "qcow2"] if below else ["8M"]
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", place.volume, *on]
        subprocess.run(argv, cwd=self.folder / place.pool, check=True)

    def is_there(self, place: Volume) -> bool:
        return (self.folder / place.pool / place.volume).exists()

    async def must_agree(self) -> None:
        """QEMU has what the record says, nothing else, and nothing works on it."""
        record = self.vm.record
        layers = chain.layers(record, record.spec.disks[0], self.pools)
        assert (await self.blocks.chains())["vda"] == [str(layer.path) for layer in layers]
        names = {layer.node for layer in layers} | {nodes.file_of(one.node) for one in layers}
        assert await self.blocks.names() == names
        assert await self.blocks.jobs() == {}
        assert (record.made, record.leaving) == ((), ())

    async def held_mirror(self) -> None:
        """To the new place, up to the moment in which the record is written."""
        self.image(NEW)
        path = self.folder / NEW.pool / NEW.volume
        layer = nodes.Layer(node=_node(NEW), path=path, format="qcow2")
        await self.blocks.add(nodes.chain([layer], read_only=False))
        job = f"mirror-{_node(NEW)}"
        await self.blocks.mirror(job, _node(OLD), _node(NEW), is_held=True)
        await self.blocks.wait(job, {"ready"})
        await self.blocks.complete(job)
        await self.blocks.wait(job, {"pending"})

    async def mend(self) -> None:
        await mend(self.vm, self.pools, self.kept)
        await mend(self.vm, self.pools, self.kept)  # once more changes nothing


def _node(place: Volume) -> str:
    return node_name(place.pool, place.volume)


@contextlib.asynccontextmanager
async def rig(folder: Path, *, below: str = "") -> AsyncIterator[Rig]:
    made = Rig(folder)
    for name in ("old", "new"):
        await made.pools.create(Pool(name=name, path=str(folder / name)))
    if below:
        made.image(Volume(pool="old", volume=below))
    made.image(OLD, below)
    files = [OLD.volume, *([below] if below else [])]
    layers = [
        nodes.Layer(node=node_name("old", name), path=folder / "old" / name, format="qcow2")
        for name in files
    ]
    made.vm.prepare_run_dir()
    argv = ["qemu-system-x86_64", "-nodefaults", "-S", "-machine", "q35", "-display", "none"]
    for node in nodes.chain(layers, read_only=False):
        argv += ["-blockdev", json.dumps(node)]
    argv += ["-device", f"virtio-blk-pci,id=blk-vda,drive={layers[0].node}"]
    started = await process.spawn([*argv, *monitors(made.vm.paths)], log=made.vm.paths.log)
    paths = made.vm.paths
    session = await Session.connect("tern", paths.control, paths.oob)
    made.vm.process, made.vm.monitor = started, Monitor(session)
    try:
        yield made
    finally:
        await session.close()
        started.kill()
        await started.wait()


@in_a_loop
async def test_a_switch_that_was_recorded_is_carried_out(tmp_path):
    async with rig(tmp_path) as made:
        await made.held_mirror()
        moved = replace(made.vm.record.spec, disks=(replace(DISK, pool="new"),))
        await made.vm.write(spec=moved, leaving=(OLD,))
        await made.mend()
        await made.must_agree()
        assert (made.is_there(NEW), made.is_there(OLD)) == (True, False)


@in_a_loop
async def test_a_switch_that_was_not_recorded_is_taken_back(tmp_path):
    async with rig(tmp_path) as made:
        await made.vm.write(made=(NEW,))
        await made.held_mirror()
        await made.mend()
        await made.must_agree()
        assert (made.is_there(NEW), made.is_there(OLD)) == (False, True)


@in_a_loop
async def test_a_switch_that_failed_after_it_was_recorded_leaves_the_disk_where_its_guest_writes(
    tmp_path,
):
    async with rig(tmp_path) as made:
        made.image(NEW)
        moved = replace(made.vm.record.spec, disks=(replace(DISK, pool="new"),))
        await made.vm.write(spec=moved, leaving=(OLD,))
        await made.kept.intend("tern", made.vm.id, [OLD], "moved", 1)
        await made.mend()
        await made.must_agree()
        assert made.vm.record.spec.disks == (DISK,)
        assert (made.is_there(NEW), made.is_there(OLD)) == (False, True)
        assert made.kept.list() == []


@in_a_loop
async def test_a_new_image_that_was_recorded_is_put_on_top(tmp_path):
    async with rig(tmp_path) as made:
        top = Volume(pool="old", volume="d.1.qcow2")
        made.image(top, OLD.volume)
        point = Checkpoint(id="0a", name="a", created="", images={"vda": Image(volume=OLD.volume)})
        spec = replace(made.vm.record.spec, disks=(replace(DISK, volume=top.volume),))
        await made.vm.write(spec=spec, checkpoints=(point,), at="0a")
        await made.mend()
        await made.must_agree()


@in_a_loop
async def test_a_merge_whose_switch_failed_is_done_again(tmp_path):
    async with rig(tmp_path, below="base.qcow2") as made:
        spec = replace(made.vm.record.spec, disks=(replace(DISK, volume="base.qcow2"),))
        await made.vm.write(spec=spec, leaving=(OLD,))
        await made.mend()
        await made.must_agree()
        assert not made.is_there(OLD)


@in_a_loop
async def test_what_is_open_and_whose_it_is_not_is_closed_and_its_files_go(tmp_path):
    other = Volume(pool="new", volume="e.qcow2")
    async with rig(tmp_path) as made:
        await made.vm.write(made=(NEW, other, OLD))  # OLD is the VM's own by now
        for place in (NEW, other):
            made.image(place)
            path = tmp_path / "new" / place.volume
            layer = nodes.Layer(node=_node(place), path=path, format="qcow2")
            await made.blocks.add(nodes.chain([layer], read_only=False))
        await made.blocks.nbd_server_start(1, host="127.0.0.1")
        await made.blocks.export("e", _node(other), "vda", writable=True)
        await made.blocks.mirror("mirror-x", _node(OLD), _node(NEW), speed=1)
        await made.mend()
        await made.must_agree()
        assert not await made.blocks.exports()
        assert [made.is_there(place) for place in (NEW, other, OLD)] == [False, False, True]


@in_a_loop
async def test_dirty_bitmaps_go_along_when_a_disk_switches(tmp_path):
    async with rig(tmp_path) as made:
        bitmap = {"node": _node(OLD), "name": "backup", "persistent": True, "granularity": 1 << 17}
        await made.vm.qmp.session.execute("block-dirty-bitmap-add", bitmap)
        planned = plan(made.vm.record, StorageWishes(pool="new"))
        after = replace(made.vm.record, spec=planned.spec)
        made.image(NEW)
        switchover = Switchover(made.blocks, made.pools, after, speed=0)
        await switchover.mirror(planned.relocations[0])
        while not (await switchover.progress())["vda"][2]:
            pass
        await switchover.hold()
        await made.vm.write(spec=planned.spec, leaving=planned.leaving)
        await switchover.switch()
        await made.mend()
        await made.must_agree()
        assert await made.blocks.bitmaps(_node(NEW)) == ("backup",)
