"""The source's side of post-copy, with a QEMU and a target that are played."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from sterna.errors import HostUnreachable, MemoryLost, QEMULost
from sterna.model.reservation import Rejoin, Rejoined
from sterna.move import postcopy
from sterna.qemu.commands import MigrationInfo


class QEMU:
    """Answers `query-migrate` from a list; the last one for ever."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)
        self.sent = 0
        self.resumed: list[str] = []
        self.session = self

    @contextlib.contextmanager
    def listen(self, *_names: str):
        yield SimpleNamespace(get=self._no_event)

    async def _no_event(self, _timeout_s: float) -> None:
        await asyncio.sleep(0)
        raise TimeoutError

    async def query_migrate(self, timeout_s: float = 0) -> MigrationInfo:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == "gone":
            raise QEMULost(name="tern", reason="it was killed")
        self.sent += 1
        return MigrationInfo(status=status, transferred=self.sent)

    async def migrate_resume(self, uri: str) -> None:
        self.resumed.append(uri)


class Target:
    """Answers `rejoin` from a list."""

    def __init__(self, *answers: Rejoined | Exception) -> None:
        self.answers = list(answers)
        self.told: list[bool] = []

    async def rejoin(self, wish: Rejoin) -> Rejoined:
        self.told.append(wish.has_pages)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(qemu: QEMU, target: Target) -> tuple[MigrationInfo | None, list[str]]:
    lines: list[str] = []
    job: Any = SimpleNamespace(
        elapsed=0.0, sample=lambda _: None, log=lambda text, level="info": lines.append(text)
    )
    ownership = SimpleNamespace(epoch=2, peer="hv-b")
    vm: Any = SimpleNamespace(
        name="tern",
        id="x",
        qmp=qemu,
        record=SimpleNamespace(ownership=ownership),
        last_words=lambda: "it said nothing",
    )
    return asyncio.run(postcopy.Sender(vm, lambda: target, job).run()), lines


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(postcopy, "RETRY_S", 0.0)
    monkeypatch.setattr(postcopy, "RETRY_MAX_S", 0.0)


WAITING = Rejoined(memory="waiting", address="fd00::2", port=4711)
SILENT = HostUnreachable(peer="hv-b", url="https://hv-b", reason="no route")


def test_it_ends_when_all_memory_has_gone():
    info, lines = run(QEMU("postcopy-active", "postcopy-active", "completed"), Target())
    assert info is not None
    assert info.status == "completed"
    assert lines == []


def test_a_broken_connection_is_made_anew_however_long_the_target_is_silent():
    qemu = QEMU("postcopy-paused", "postcopy-paused", "postcopy-active", "completed")
    target = Target(SILENT, SILENT, SILENT, Rejoined(memory="arriving"), WAITING)
    info, lines = run(qemu, target)
    assert info is not None
    assert qemu.resumed == ["tcp:[fd00::2]:4711"]
    assert len([line for line in lines if "no route" in line]) == 1  # said once
    assert lines[-1] == "the connection is made anew"


def test_a_new_connection_that_breaks_at_once_is_made_again():
    broken = ("postcopy-paused", "postcopy-recover", "postcopy-paused")
    qemu = QEMU("postcopy-paused", *broken, "postcopy-recover", "postcopy-active", "completed")
    info, _ = run(qemu, Target(WAITING, WAITING))
    assert info is not None
    assert len(qemu.resumed) == 2


def test_a_target_whose_qemu_has_ended_is_believed():
    with pytest.raises(MemoryLost, match="was killed"):
        run(QEMU("postcopy-paused"), Target(SILENT, Rejoined(memory="lost", reason="was killed")))


def test_a_target_that_has_all_of_it_needs_no_connection():
    assert run(QEMU("postcopy-paused"), Target(Rejoined(memory="whole")))[0] is None


def test_a_source_whose_qemu_ended_tells_the_target_until_it_has_heard():
    target = Target(SILENT, SILENT, Rejoined(memory="lost"))
    with pytest.raises(MemoryLost):
        run(QEMU("postcopy-active", "gone"), target)
    assert target.told == [False, False, False]
