"""Whatever is made, deleted, merged and gone back to: every checkpoint that is shown shows what it
showed when it was made, and no file is without an owner.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.checkpoint import tree
from sterna.errors import CheckpointExists, CheckpointNotFound
from sterna.model.disk import Checkpoint, Image, StateFile
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.vms import chain

DISKS = ("vda", "vdb")
BASE = Image(volume="template.qcow2")


class World:
    """A VM's record, and what is in each of its images: block -> number of the write."""

    def __init__(self) -> None:
        vda = Disk(name="vda", pool="p", volume="vda.raw", format="raw")
        vdb = Disk(name="vdb", pool="p", volume="vdb.qcow2", base=(BASE,))
        cd = Disk(name="cd", pool="p", volume="cd.iso", format="raw", read_only=True)
        self.record = VMRecord(
            spec=VMSpec(name="tern", id="id", disks=(vda, vdb, cd)),
            ownership=Ownership(state=OwnershipState.OWNED, epoch=1),
        )
        self.content: dict[str, dict[int, int]] = {"vda.raw": {}, "vdb.qcow2": {}, "cd.iso": {}}
        self.content[BASE.volume] = {99: -1}
        self.shown: dict[str, list[dict[int, int]]] = {}
        self.now: list[dict[int, int]] = [{}, {99: -1}]
        self.writes = 0
        self.made = 0

    def change(self, changes: tree.Changes) -> None:
        self.record = replace(self.record, **changes)
        own = {file.volume for file in chain.own_files(self.record)}
        for file in self.record.leaving:
            if file.volume not in own:
                self.content.pop(file.volume, None)
        self.record = replace(self.record, leaving=())

    def disk(self, name: str) -> Disk:
        return next(disk for disk in self.record.spec.disks if disk.name == name)

    def view(self, record: VMRecord) -> list[dict[int, int]]:
        views = []
        for name in DISKS:
            view: dict[int, int] = {}
            disk = next(disk for disk in record.spec.disks if disk.name == name)
            for image in reversed(chain.images(record, disk)):
                view |= self.content[image.volume]
            views.append(view)
        return views

    def view_of(self, one: Checkpoint) -> list[dict[int, int]]:
        """Of a checkpoint, as if an empty image had been put on it."""
        tops = {name: Image(volume="empty") for name in one.images}
        self.content["empty"] = {}
        views = self.view(replace(self.record, at=one.id, **tree.with_tops(self.record, tops)))
        del self.content["empty"]
        return views

    # ---- steps -------------------------------------------------------------------------------

    def write(self, block: int) -> None:
        self.writes += 1
        for number, name in enumerate(DISKS):
            self.content[self.disk(name).volume][block] = self.writes
            self.now[number] = {**self.now[number], block: self.writes}

    def new_tops(self) -> dict[str, Image]:
        self.made += 1
        tops = {name: Image(volume=f"{name}.{self.made}.qcow2") for name in DISKS}
        for image in tops.values():
            self.content[image.volume] = {}
        return tops

    def create(self) -> None:
        tops = self.new_tops()
        name = f"c{self.made}"
        one = Checkpoint(id=f"{self.made:08x}", name=name, created="")
        self.change(tree.frozen(self.record, one, tops))
        self.shown[name] = [dict(view) for view in self.now]

    def apply(self, which: int) -> None:
        shown = tree.visible(self.record)
        if not shown:
            return
        one = shown[which % len(shown)]
        old = [self.disk(name).volume for name in DISKS]
        changes = tree.with_tops(self.record, self.new_tops())
        self.change({**changes, "at": one.id})
        for volume in old:
            del self.content[volume]
        self.now = [dict(view) for view in self.shown[one.name]]
        self.clear()

    def delete(self, which: int, *, subtree: bool) -> None:
        shown = tree.visible(self.record)
        if not shown:
            return
        one = shown[which % len(shown)]
        ids = tree.subtree(self.record, one.id) if subtree else (one.id,)
        for gone in self.record.checkpoints:
            if gone.id in ids:
                self.shown.pop(gone.name, None)
        self.change(tree.hidden(self.record, ids))
        self.clear()

    def clear(self, steps: int = 1000) -> None:
        """As `Merger.run`; at most `steps` merges, as if it were cancelled then."""
        self.change(tree.dropped(self.record))
        while (gone := tree.mergeable(self.record)) is not None:
            for disk in [self.disk(name) for name in DISKS if name in gone.images]:
                if not steps:
                    return
                steps -= 1
                gone = tree.find(self.record, gone.id, hidden_too=True)
                base = gone.images[disk.name]
                ((_, upper),) = tree.overlays(self.record, disk, base.volume)
                self.content[base.volume] |= self.content[upper.volume]
                self.change(tree.merged(self.record, gone, disk))
            self.change(tree.dropped(self.record))

    # ---- what must hold ----------------------------------------------------------------------

    def must_be_right(self) -> None:
        assert self.view(self.record) == self.now
        for one in tree.visible(self.record):
            assert self.view_of(one) == self.shown[one.name], one.name
        own = {file.volume for file in chain.own_files(self.record)}
        assert own | {BASE.volume} == set(self.content)
        for one in self.record.checkpoints:
            assert not one.hidden or tree.resting(self.record, one.id) > 1


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 5)),
    st.tuples(st.just("create"), st.just(0)),
    st.tuples(st.just("apply"), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.integers(0, 9)),
    st.tuples(st.just("subtree"), st.integers(0, 9)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_what_is_shown_is_what_was_and_nothing_is_left(steps):
    world = World()
    for step, number in steps:
        match step:
            case "write":
                world.write(number)
            case "create":
                world.create()
            case "apply":
                world.apply(number)
            case "delete":
                world.delete(number, subtree=False)
            case "subtree":
                world.delete(number, subtree=True)
        world.must_be_right()


def test_a_merge_that_was_cut_between_two_disks_goes_on_later():
    world = World()
    for block in range(3):
        world.write(block)
        world.create()
    for cut in (1, 2, 3):
        one = tree.visible(world.record)[0]
        world.shown.pop(one.name)
        world.change(tree.hidden(world.record, {one.id}))
        world.clear(steps=cut)
        assert world.view(world.record) == world.now
    world.clear()
    world.must_be_right()
    assert world.record.checkpoints == ()
    assert {disk.volume for disk in world.record.spec.disks} == {"vda.raw", "vdb.qcow2", "cd.iso"}


def test_names_are_unique_among_those_that_are_shown_and_may_be_used_again():
    world = World()
    world.create()
    with pytest.raises(CheckpointExists):
        tree.require_free(world.record, "c1")
    world.create()
    world.apply(0)
    world.create()  # two rest on the first: it stays when it is deleted
    world.delete(0, subtree=False)
    tree.require_free(world.record, "c1")
    with pytest.raises(CheckpointNotFound):
        tree.find(world.record, "c1")
    assert tree.find(world.record, "c1", hidden_too=True).hidden


def test_the_memory_of_a_deleted_checkpoint_leaves_at_once():
    world = World()
    world.create()
    state = StateFile(pool="p", volume="m.mem", size=1, sha256="", accel="tcg")
    one = replace(world.record.checkpoints[0], memory=state)
    record = replace(world.record, checkpoints=(one,))
    assert tree.hidden(record, {one.id})["leaving"] == (state.place,)
