"""A daemon's start, as far as it needs no QEMU: what the records say is what the operations say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from operations_rig import a_runner, in_loop
from sterna.config import Config
from sterna.host.registry import Pools
from sterna.model.disk import Volume
from sterna.model.host import Pool
from sterna.model.operation import OperationState
from sterna.model.reservation import ReservationStatus
from sterna.model.vm import Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move import departure
from sterna.move.recovery import Recovery
from sterna.vms.service import VMs

FILE = Volume(pool="one", volume="web.raw")


class Target:
    """It has taken whatever it is asked about."""

    async def take(self, operation: str, _vm_id: str, _epoch: int) -> ReservationStatus:
        return ReservationStatus(operation=operation, state=OwnershipState.OWNED)


async def left_open(folder: Path) -> None:
    """The journal of a daemon that ended in mid-move."""
    async with a_runner(folder) as runner:
        began = asyncio.Event()

        async def work(_job: Any) -> dict[str, Any]:
            began.set()
            await asyncio.Event().wait()
            return {}

        runner.start("move", vm="web", vm_id="id-web", work=work, peer="b", id="op")
        await began.wait()


async def started(folder: Path, runner: Any, state: OwnershipState) -> VMs:
    """The next daemon, with a record in that state and a file to be removed."""
    pools = Pools(folder / "pools", host="a")
    await pools.create(Pool(name="one", path=str(folder / "one")))
    (folder / "one" / FILE.volume).write_text("x")
    launcher: Any = SimpleNamespace(pools=pools, remove_files=lambda _spec: None)
    vms = VMs(
        Config(name="a", state_dir=folder / "state", run_dir=folder / "run"), launcher, runner
    )
    ownership = Ownership(state=state, epoch=2, operation="op", peer="b")
    spec = VMSpec(name="web", id="id-web")
    await vms.store.write(
        spec.id, VMRecord(spec=spec, ownership=ownership, moving="op", departing=(FILE,))
    )
    return vms


async def recovered(folder: Path, state: OwnershipState) -> tuple[VMs, Any]:
    """Start it while the pool is away."""
    await left_open(folder)
    async with a_runner(folder) as runner:
        vms = await started(folder, runner, state)
        (folder / "one").rename(folder / "unmounted")
        peers: Any = SimpleNamespace(get=lambda _name: Target(), names=["b"])
        await Recovery(vms, peers, incoming=None).run()  # type: ignore[arg-type]
        ended = await runner.wait("op")
        (folder / "unmounted").rename(folder / "one")
    return vms, ended


@in_loop
async def test_a_move_that_succeeded_is_told_so_when_a_pool_of_its_files_is_away(
    tmp_path: Path,
) -> None:
    vms, ended = await recovered(tmp_path, OwnershipState.RELEASED)
    assert ended.state is OperationState.PARTIAL
    assert "web is on b, but something was left behind" in ended.error["title"]
    vm = vms.by_id("id-web")
    assert vm is not None
    assert vm.record.departing == (FILE,)
    await departure.remove_departed(vm, vms)
    assert not (tmp_path / "one" / FILE.volume).exists()


@in_loop
async def test_a_doubt_that_ends_while_a_pool_is_away_has_moved_the_vm(tmp_path: Path) -> None:
    vms, ended = await recovered(tmp_path, OwnershipState.YIELDING)
    assert ended.state is OperationState.PARTIAL
    assert "web is on b" in ended.error["title"]
    vm = vms.by_id("id-web")
    assert vm is not None
    assert vm.record.ownership.state is OwnershipState.RELEASED
    assert vm.record.departing == (FILE,)


@in_loop
async def test_what_is_left_behind_does_not_hide_that_memory_was_lost(tmp_path: Path) -> None:
    warned: list[str] = []
    async with a_runner(tmp_path) as runner:
        vms = await started(tmp_path, runner, OwnershipState.RELEASED)
        (vm,) = vms.load()
        (tmp_path / "one").rename(tmp_path / "unmounted")
        job: Any = SimpleNamespace(warn=warned.append)
        await departure.tidy(vm, vms, job, has_failed=True)
    (warning,) = warned
    assert "left behind" in warning
