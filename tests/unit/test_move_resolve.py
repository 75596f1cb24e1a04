"""The doubt at the end of a handover: asked about, explained, ended by its target or by a human."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from operations_rig import a_runner, in_loop
from standin import Operation
from sterna.errors import FenceRefused, HostUnknown, HostUnreachable, NotInDoubt
from sterna.host.store import Store
from sterna.model.operation import OperationState
from sterna.model.reservation import ReservationStatus
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move import handover, protocol, untouched
from sterna.move.resolve import Doubts
from sterna.vms.machine import VM

OWNED, REFUSED, YIELDING = OwnershipState.OWNED, OwnershipState.REFUSED, OwnershipState.YIELDING
GONE = HostUnreachable(peer="b", url="https://b", reason="no route")


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.001)


class Target:
    """A peer that answers what the test says: a state, or an error."""

    def __init__(self, name="b"):
        self.name, self.answer, self.knows, self.told = name, GONE, GONE, []

    async def take(self, operation, vm_id, epoch):
        if isinstance(self.answer, Exception):
            raise self.answer
        return ReservationStatus(operation=operation, state=self.answer)

    async def standing(self, vm_id):
        if isinstance(self.knows, Exception):
            raise self.knows
        return self.knows

    async def fenced(self, vm_id, epoch, by):
        if isinstance(self.knows, Exception):
            raise self.knows
        self.told.append((vm_id, epoch, by))


class World:
    """Host a, whose VM was given to b, as far as the ways out of a doubt look at it."""

    def __init__(self, folder: Path, runner):
        self.runner, self.damaged = runner, []
        self.config = SimpleNamespace(name="a")
        self.pools = SimpleNamespace(volume_path=lambda _pool, volume: folder / volume)
        self.launcher = SimpleNamespace(pools=self.pools)
        self.peers = {"b": Target(), "c": Target("c")}
        self.peers["c"].knows = (None, 0)
        disk = Disk(name="vda", pool="shared", volume="v.raw", format="raw")
        ownership = Ownership(state=YIELDING, epoch=2, operation="op", peer="b")
        record = VMRecord(
            spec=VMSpec(name="web", id="id-web", disks=(disk,)), ownership=ownership, moving="op"
        )
        (folder / "v.raw").write_bytes(b"x")
        self.vm = VM(record, Store(folder / "vms", VMRecord), folder / "run")
        self.doubts = Doubts(self, SimpleNamespace(get=self.get, names=["b", "c"]), None)

    def get(self, name):
        if name not in self.peers:
            raise HostUnknown(host="a", peer=name, known="none")
        return self.peers[name]

    def by_id(self, vm_id):
        return self.vm if vm_id == "id-web" else None

    def all(self):
        return [self.vm]

    def begin(self):
        """The operation that asks until it knows."""

        async def work(job):
            try:
                await handover.resolve(self.vm, lambda: self.get("b"), job, self.pools)
            except handover.Fenced as error:
                job.warn(error.message)
                return handover.fenced_report("a", error)
            return {"text": "taken"}

        return self.runner.start("move", vm="web", vm_id="id-web", work=work, id="op")

    async def until_unknown(self):
        await until(lambda: self.runner.live("op").state is OperationState.UNKNOWN)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(handover, "DOUBT_AFTER_S", 0.0)
    monkeypatch.setattr(handover, "RETRY_S", 0.001)
    monkeypatch.setattr("sterna.move.resolve.TELL_S", 0.001)


@in_loop
async def test_a_fence_owns_the_vm_above_what_was_given_and_tells_until_it_is_heard(tmp_path):
    async with a_runner(tmp_path) as runner:
        world = World(tmp_path, runner)
        world.begin()
        await world.until_unknown()
        doubt = await world.doubts.explain("op")
        assert (doubt.target, doubt.epoch, doubt.guest, doubt.blocker) == ("b", 2, "off", "")
        await world.doubts.fence("op")
        ended = await runner.wait("op")
        assert ended.state is OperationState.WARNED
        assert (world.vm.record.ownership.state, world.vm.record.ownership.epoch) == (OWNED, 3)
        with pytest.raises(NotInDoubt):
            await world.doubts.fence("op")
        telling = runner.background(world.doubts.tell(), "tell")
        await asyncio.sleep(0)
        assert world.vm.record.fenced
        world.peers["b"].knows = (OWNED, 2)
        await until(lambda: not world.vm.record.fenced)
        telling.cancel()
        assert world.peers["b"].told == [("id-web", 2, "a")]


@in_loop
async def test_a_target_that_answers_and_a_vm_that_went_on_are_not_fenced(tmp_path):
    async with a_runner(tmp_path) as runner:
        world = World(tmp_path, runner)
        world.begin()
        await world.until_unknown()
        world.peers["b"].knows = (OWNED, 2)
        with pytest.raises(FenceRefused, match="b is not off"):
            await world.doubts.fence("op")
        world.peers["b"].knows, world.peers["c"].knows = GONE, (OWNED, 3)
        with pytest.raises(FenceRefused, match="went on to c"):
            await world.doubts.fence("op")
        assert world.vm.record.ownership.state is YIELDING
        world.peers["b"].answer = OWNED
        assert (await runner.wait("op")).result["text"] == "taken"


@in_loop
async def test_a_doubt_about_a_host_that_the_configuration_lost_can_be_ended(tmp_path):
    async with a_runner(tmp_path) as runner:
        world = World(tmp_path, runner)
        lost = world.peers.pop("b")
        world.begin()
        await world.until_unknown()
        doubt = await world.doubts.explain("op")
        assert "b" in doubt.target_says
        world.peers["b"] = lost
        lost.answer = REFUSED
        assert (await runner.wait("op")).state is OperationState.FAILED
        assert (world.vm.record.ownership.state, world.vm.record.ownership.epoch) == (OWNED, 1)


@in_loop
async def test_a_fenced_host_lets_go_and_keeps_its_files(tmp_path):
    async with a_runner(tmp_path) as runner:
        world = World(tmp_path, runner)
        world.kept = SimpleNamespace(forsake=lambda _id: asyncio.sleep(0))
        taken = Ownership(state=OWNED, epoch=2, operation="op", peer="z")
        await world.vm.write(ownership=taken, owned_epoch=2, moving="")
        assert await world.doubts.fenced("id-web", 1, "z") == ("owned", 2)
        assert await world.doubts.fenced("id-web", 2, "z") == ("released", 2)
        assert await world.doubts.fenced("id-web", 2, "z") == ("released", 2)
        assert str(tmp_path / "v.raw") in world.vm.record.notes[-1]
        assert (tmp_path / "v.raw").exists()
        (told,) = await runner.list(kind="fenced")
        await runner.wait(told.id)
        assert await world.doubts.fenced("id-other", 2, "z") == ("", 0)


@in_loop
async def test_a_file_that_changed_or_cannot_be_read_is_not_untouched(tmp_path):
    async with a_runner(tmp_path) as runner:
        world = World(tmp_path, runner)
        assert not await untouched.is_untouched(world.vm.record, world.pools)
        stamps = await untouched.stamps(world.vm.record, world.pools, 5)
        await world.vm.write(stamps=stamps)
        assert await untouched.is_untouched(world.vm.record, world.pools)
        (tmp_path / "v.raw").write_bytes(b"yy")
        assert not await untouched.is_untouched(world.vm.record, world.pools)
        (tmp_path / "v.raw").unlink()
        assert not await untouched.is_untouched(world.vm.record, world.pools)


@in_loop
async def test_a_deleted_record_is_not_written_anew(tmp_path):
    async with a_runner(tmp_path) as runner:
        vm = World(tmp_path, runner).vm
        await vm.write()
        await asyncio.gather(vm.delete(), vm.write(paused=True), return_exceptions=True)
        assert list((tmp_path / "vms").iterdir()) == []


DOUBT = {
    "operation": "", "vm": "web", "vm_id": "i", "target": "hv-b", "epoch": 2, "blocker": "",
    "since": "2026-11-22T10:00:00Z", "guest": "paused", "target_says": "no route",
    "others": ["hv-c has not got it"], "travelling": ["vda"],
    "ways": [{"name": "wait", "what": "It asks", "loses": "nothing"},
             {"name": "fence", "what": "Turn it off", "loses": "vda there"}],
}  # fmt: skip


def test_the_command_explains_asks_and_fences(sterna, sternad):
    operation = Operation("move", "web", "hv-b")
    sternad.operations[operation.id] = operation
    none = sterna("op", "resolve", operation.id)
    assert none.code == 4
    assert "not in doubt: it is running" in none.err
    operation.doubt = DOUBT
    told = sterna("op", "resolve", operation.id)
    assert told.code == 0
    for words in ("was given to hv-b", "no route", "1. wait", "2. fence", "vda there"):
        assert words in told.out
    assert json.loads(sterna("op", "resolve", operation.id, "-o", "json").out) == DOUBT
    asked = sterna("op", "resolve", operation.id, "--fenced")
    assert asked.code == 2
    assert operation.facts["state"] == "running"
    assert sterna("op", "resolve", operation.id, "--fenced", "--yes").code == 10


@in_loop
async def test_a_declaration_is_for_the_doubt_that_it_was_made_in(tmp_path):
    """The target refused in the moment in which it was declared to be off; then the VM moves again."""
    async with a_runner(tmp_path) as runner:
        world = World(tmp_path, runner)
        owned = Ownership(state=OWNED, epoch=1)
        await world.vm.write(ownership=owned, moving="")
        world.vm.declared.set()

        async def work(job):
            await handover.give(world.vm, world.get("b"), job, world.pools)
            return {"text": "taken"}

        world.peers["b"].answer = HostUnreachable(peer="b", url="https://b", reason="too slow")
        world.peers["b"].answer.delivered = True
        runner.start("move", vm="web", vm_id="id-web", work=work, id="op")
        await world.until_unknown()
        await asyncio.sleep(0.05)
        assert (world.vm.record.ownership.state, world.vm.record.fenced) == (YIELDING, ())
        world.peers["b"].answer = OWNED
        assert (await runner.wait("op")).result["text"] == "taken"


def test_only_the_first_take_can_prove_that_it_was_not_heard():
    owned = protocol.Standing(ownership=Ownership(state=OWNED, epoch=1))
    yielding = protocol.source_yield(owned, "op", "b")
    assert protocol.source_undelivered(yielding, asked_before=True) == yielding
    assert protocol.source_undelivered(yielding, asked_before=False).epoch == 1
