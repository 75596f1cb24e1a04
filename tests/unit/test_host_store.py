"""Records survive, damage is set aside, and a failed write changes nothing."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from sterna.errors import StateNotWritten
from sterna.host import store as store_module
from sterna.host.store import Store
from sterna.model.vm import STRICT, Ownership, OwnershipState, VMRecord, VMSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    __pydantic_config__ = STRICT

    name: str
    number: int = 0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "notes"


@pytest.fixture
def store(directory: Path) -> Store[Note]:
    return Store(directory, Note, key_of=lambda note: note.name)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_store_that_does_not_exist_yet_is_empty(store: Store[Note]) -> None:
    assert store.load() == ({}, [])


def test_what_was_written_is_read_by_the_next_daemon(store: Store[Note], directory: Path) -> None:
    store.write_now("a.b-c", Note(name="a.b-c", number=1))
    store.write_now("a.b-c", Note(name="a.b-c", number=2))
    again = Store(directory, Note)
    assert again.load() == ({"a.b-c": Note(name="a.b-c", number=2)}, [])
    assert names(directory) == ["a.b-c.json"]
    assert (directory / "a.b-c.json").stat().st_mode & 0o777 == 0o600


def test_a_vm_record_comes_back_equal(tmp_path: Path) -> None:
    record = VMRecord(
        spec=VMSpec(name="web", id="4c1c2f9e-8d65-4c53-a4a5-28e44a3b8a0f", memory=1 << 30),
        ownership=Ownership(state=OwnershipState.OWNED, epoch=3),
    )
    Store(tmp_path, VMRecord).write_now(record.spec.id, record)
    records, damaged = Store(tmp_path, VMRecord).load()
    assert records == {record.spec.id: record}
    assert damaged == []


def test_a_deleted_record_is_gone_and_deleting_it_again_is_fine(
    store: Store[Note], directory: Path
) -> None:
    store.delete_now("never-was")
    store.write_now("a", Note(name="a"))
    store.delete_now("a")
    store.delete_now("a")
    assert names(directory) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOF while parsing"),
        (b'{"name": "bad", "num', "EOF while parsing"),
        (b"\x00" * 4096, "expected value"),
        (b"\xff\xfe{}", "expected value"),
        (b'{"name": "bad", "colour": "red"}', "unknown field 'colour'"),
        (b'{"name": "other"}', "it holds the record of other"),
        (b"[" * 100_000, "recursion limit"),
    ],
)
def test_a_damaged_record_is_set_aside_and_hides_no_other(
    store: Store[Note], directory: Path, content: bytes, reason: str
) -> None:
    store.write_now("good", Note(name="good"))
    (directory / "bad.json").write_bytes(content)
    records, damaged = store.load()
    assert records == {"good": Note(name="good")}
    assert [found.key for found in damaged] == ["bad"]
    assert reason in damaged[0].reason
    assert damaged[0].path.read_bytes() == content
    assert damaged[0].path.name.startswith("bad.json.damaged-")
    assert not (directory / "bad.json").exists()


def test_what_was_set_aside_is_reported_until_it_is_removed(
    store: Store[Note], directory: Path
) -> None:
    directory.mkdir(parents=True)
    (directory / "bad.json").write_text("{")
    first = store.load()[1]
    assert Store(directory, Note).load()[1] == first
    first[0].path.write_text(json.dumps({"name": "bad"}))
    assert "rename it to bad.json" in store.load()[1][0].reason
    first[0].path.rename(directory / "bad.json")
    assert store.load() == ({"bad": Note(name="bad")}, [])


def test_two_damages_of_one_record_are_both_kept(store: Store[Note], directory: Path) -> None:
    directory.mkdir(parents=True)
    for text in ("{", "["):
        (directory / "bad.json").write_text(text)
        store.load()
    assert sorted(found.path.read_text() for found in store.load()[1]) == ["[", "{"]


def test_a_directory_where_a_record_should_be_is_reported(
    store: Store[Note], directory: Path
) -> None:
    (directory / "odd.json").mkdir(parents=True)
    records, damaged = store.load()
    assert records == {}
    assert damaged[0].reason == "Is a directory"


def test_leftovers_of_an_interrupted_write_are_removed_and_strangers_are_not(
    store: Store[Note], directory: Path
) -> None:
    store.write_now("a", Note(name="a"))
    (directory / ".a.json.x1y2z3.tmp").write_text("{")
    (directory / "README").write_text("mine")
    assert store.load() == ({"a": Note(name="a")}, [])
    assert names(directory) == ["README", "a.json"]


@pytest.mark.parametrize("key", ["", "..", ".hidden", "a/b", "../a", "a" * 151, "a\n"])
def test_a_key_never_leaves_the_directory(store: Store[Note], key: str) -> None:
    with pytest.raises(ValueError, match="cannot be the key"):
        store.write_now(key, Note(name="a"))


def test_concurrent_writers_leave_the_record_of_the_last_call(
    store: Store[Note], directory: Path
) -> None:
    async def write_many() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                for name in ("a", "b"):
                    group.create_task(store.write(name, Note(name=name, number=number)))

    asyncio.run(write_many())
    assert store.load()[0] == {name: Note(name=name, number=49) for name in ("a", "b")}
    assert names(directory) == ["a.json", "b.json"]


def test_a_write_that_fails_leaves_the_old_record(
    store: Store[Note], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_now("a", Note(name="a", number=1))

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(StateNotWritten) as caught:
            store.write_now("a", Note(name="a", number=2))
    assert caught.value.message == f"could not write {directory}/a.json: No space left on device"
    assert store.load() == ({"a": Note(name="a", number=1)}, [])
    assert names(directory) == ["a.json"]


def test_a_cancelled_writer_is_told_only_after_the_record_was_written(
    store: Store[Note], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = Event(), Event()
    real = store_module.replace_file

    def slowly(path: Path, data: bytes) -> None:
        begun.set()
        assert go.wait(10)
        real(path, data)

    monkeypatch.setattr(store_module, "replace_file", slowly)

    async def cancel_it() -> Any:
        task = asyncio.create_task(store.write("a", Note(name="a", number=7)))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return store.load()[0]

    assert asyncio.run(cancel_it()) == {"a": Note(name="a", number=7)}


def test_a_cancelled_writer_whose_write_failed_is_told_of_the_failure(
    store: Store[Note], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = Event(), Event()

    def fail(path: Path, data: bytes) -> None:
        begun.set()
        assert go.wait(10)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store_module, "replace_file", fail)

    async def cancel_it() -> None:
        task = asyncio.create_task(store.write("a", Note(name="a")))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(StateNotWritten, match="Input/output error"):
            await task

    asyncio.run(cancel_it())
