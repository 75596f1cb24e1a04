"""Pools by name: what was created is there after a restart, what failed left nothing."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from sterna.errors import (
    PoolExists,
    PoolInUse,
    PoolNotFound,
    PoolUnusable,
    RecordDamaged,
    StateNotWritten,
)
from sterna.host import registry, storage
from sterna.host.registry import Pools
from sterna.host.storage import IDENTITY_FILE
from sterna.model.host import Pool, PoolFacts


def nobody(name: str) -> list[str]:
    return []


def do(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@pytest.fixture
def restart(tmp_path: Path) -> Callable[[], Pools]:
    def make() -> Pools:
        pools = Pools(tmp_path / "state" / "pools", host="hv-a")
        pools.load()
        return pools

    return make


@pytest.fixture
def pools(restart: Callable[[], Pools]) -> Pools:
    return restart()


@pytest.fixture
def wanted(tmp_path: Path) -> Pool:
    return Pool(name="fast", path=str(tmp_path / "fast"))


def test_a_pool_is_known_after_a_restart(
    pools: Pools, restart: Callable[[], Pools], wanted: Pool
) -> None:
    made = do(pools.create(wanted))
    assert made.identity
    again = restart()
    assert again.list() == [made]
    assert again.get("fast") == again.require("fast") == made
    assert [facts.problem for facts in do(again.facts())] == [""]
    assert again.volume_path("fast", "x.raw") == Path(wanted.path) / "x.raw"


def test_a_pool_that_exists_or_is_missing_is_said_by_name(pools: Pools, wanted: Pool) -> None:
    do(pools.create(wanted))
    with pytest.raises(PoolExists, match="hv-a already has a pool called fast"):
        do(pools.create(wanted))
    with pytest.raises(PoolNotFound, match="hv-a has no pool called slow"):
        pools.get("slow")


def test_one_directory_is_not_two_pools(pools: Pools, wanted: Pool) -> None:
    do(pools.create(wanted))
    with pytest.raises(PoolUnusable, match="is the pool fast already"):
        do(pools.create(Pool(name="twin", path=wanted.path)))
    assert [pool.name for pool in pools.list()] == ["fast"]
    pools.require("fast")


def test_a_pool_in_use_stays(pools: Pools, wanted: Pool) -> None:
    do(pools.create(wanted))
    with pytest.raises(PoolInUse, match="used by db, web"):
        do(pools.delete("fast", lambda name: ["web", "db"]))
    pools.require("fast")


def test_deleting_a_pool_keeps_its_volumes(
    pools: Pools, restart: Callable[[], Pools], wanted: Pool
) -> None:
    made = do(pools.create(wanted))
    (Path(wanted.path) / "web.raw").touch()
    do(pools.delete("fast", nobody))
    assert restart().list() == []
    assert (Path(wanted.path) / "web.raw").exists()
    assert do(pools.create(wanted)) == made


def test_a_pool_that_cannot_be_recorded_leaves_nothing(
    pools: Pools, wanted: Pool, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(StateNotWritten):
        do(pools.create(wanted))
    assert pools.list() == []
    assert not (Path(wanted.path) / IDENTITY_FILE).exists()


def test_a_damaged_record_is_reported_and_the_others_work(
    pools: Pools, restart: Callable[[], Pools], wanted: Pool, tmp_path: Path
) -> None:
    do(pools.create(wanted))
    (tmp_path / "state" / "pools" / "slow.json").write_text("{")
    again = restart()
    again.require("fast")
    assert [damaged.key for damaged in again.damaged] == ["slow"]
    with pytest.raises(RecordDamaged, match="the record of pool slow on hv-a is damaged"):
        again.get("slow")


def test_a_pool_that_is_not_mounted_cannot_be_required(pools: Pools, wanted: Pool) -> None:
    do(pools.create(wanted))
    (Path(wanted.path) / IDENTITY_FILE).unlink()
    with pytest.raises(PoolUnusable, match="nothing is mounted at"):
        pools.require("fast")
    with pytest.raises(PoolUnusable, match="nothing is mounted at"):
        do(pools.delete_volume("fast", "web.raw"))
    do(pools.delete("fast", nobody))


def test_a_hanging_share_costs_one_thread_and_is_used_again_when_it_answers(
    pools: Pools, wanted: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(pools.create(wanted))
    answers, asked = Event(), []
    real = storage.facts

    def hang(pool: Pool) -> PoolFacts:
        asked.append(pool)
        assert answers.wait(30)
        return real(pool)

    monkeypatch.setattr(storage, "facts", hang)
    monkeypatch.setattr(registry, "PROBE_S", 0.05)
    for _ in range(3):
        assert "does not answer" in do(pools.facts_of("fast")).problem
    with pytest.raises(PoolUnusable, match="does not answer"):
        pools.require("fast")
    assert len(asked) == 1
    answers.set()
    pools._hanging["fast"].result(10)
    assert do(pools.facts_of("fast")).problem == ""
