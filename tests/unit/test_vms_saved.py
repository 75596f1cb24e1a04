"""A saved VM goes on or stays saved, whenever somebody changes their mind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sterna.model.disk import StateFile
from sterna.vms import saved

STATE = StateFile(pool="one", volume="web.mem", size=1, sha256="", accel="tcg")
STEPS = ("launch", "load", "write", "resume", "announce")


class Fake:
    """A VM whose steps take a moment each, and where it was cancelled."""

    def __init__(self) -> None:
        self.record = SimpleNamespace(saved=STATE, leaving=(), checkpoints=())
        self.runs = False
        self.reached = {name: asyncio.Event() for name in STEPS}
        self.qmp = SimpleNamespace(announce_self=self._announce)

    async def step(self, name: str) -> None:
        self.reached[name].set()
        await asyncio.sleep(0.001)

    async def write(self, **changes: Any) -> None:
        await self.step("write")
        self.record = SimpleNamespace(**(vars(self.record) | changes))

    async def resume_as_recorded(self) -> None:
        await self.step("resume")
        self.runs = True

    async def quit(self) -> None:
        self.runs = False

    async def _announce(self) -> None:
        await self.step("announce")


@pytest.mark.parametrize("where", STEPS)
def test_a_cancelled_restore_leaves_the_vm_saved_or_running(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = Fake()

    async def launch(_vm: Fake, *, incoming: bool) -> None:
        assert incoming
        await vm.step("launch")

    async def load(*_: Any) -> None:
        await vm.step("load")

    async def clear(*_: Any) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(saved, "_load", load)
    monkeypatch.setattr(saved, "clear_quietly", clear)
    launcher: Any = SimpleNamespace(launch=launch)

    async def restoring() -> None:
        going: Any = vm
        task = asyncio.ensure_future(saved.go_on(going, launcher, None, is_sound=True))  # type: ignore[arg-type]
        await vm.reached[where].wait()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(restoring())
    assert (vm.record.saved is not None) is not vm.runs
    assert vm.runs is (where in ("write", "resume", "announce"))


def test_the_damage_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "web.mem").write_bytes(b"ab")
    launcher: Any = SimpleNamespace(
        pools=SimpleNamespace(volume_path=lambda _pool, volume: tmp_path / volume)
    )
    _, reason = asyncio.run(saved.damage(STATE, launcher))
    assert "2 bytes instead of 1" in reason
