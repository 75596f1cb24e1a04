"""Real file systems that are full, read-only or not mounted, in a mount namespace of the test's own."""

import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sterna.errors import PoolUnusable, StateNotWritten
from sterna.host import storage
from sterna.host.storage import IDENTITY_FILE
from sterna.host.store import Store
from sterna.model.host import Pool

pytestmark = [
    pytest.mark.functional,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    text: str


def alone(work: Callable[[], None]) -> None:
    """Run `work` in a thread whose mounts nobody else sees, and which end with it."""
    failure: list[BaseException] = []

    def inside() -> None:
        try:
            assert ctypes.CDLL(None).unshare(CLONE_FS | CLONE_NEWNS) == 0
            sh("mount --make-rprivate /")
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            failure.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True)


def fill(directory: Path) -> None:
    with (directory / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_a_full_disk_leaves_the_old_record_and_says_so(tmp_path: Path) -> None:
    def work() -> None:
        sh(f"mount -t tmpfs -o size=64k none {tmp_path}")
        store = Store(tmp_path / "vms", Note)
        store.write_now("web", Note(text="old"))
        fill(tmp_path)
        with pytest.raises(StateNotWritten, match="No space left on device"):
            store.write_now("web", Note(text="new"))
        assert store.load() == ({"web": Note(text="old")}, [])
        assert [path.name for path in (tmp_path / "vms").iterdir()] == ["web.json"]
        store.delete_now("web")  # needs no space
        (tmp_path / "filler").unlink()
        store.write_now("web", Note(text="new"))
        assert store.load() == ({"web": Note(text="new")}, [])

    alone(work)


def test_a_read_only_disk_hides_no_record_and_loses_no_damaged_one(tmp_path: Path) -> None:
    def work() -> None:
        sh(f"mount -t tmpfs none {tmp_path}")
        store = Store(tmp_path, Note)
        store.write_now("good", Note(text="x"))
        (tmp_path / "bad.json").write_text("{")
        sh(f"mount -o remount,ro {tmp_path}")
        records, damaged = store.load()
        assert records == {"good": Note(text="x")}
        assert [(found.key, found.path) for found in damaged] == [("bad", tmp_path / "bad.json")]
        for change in (
            lambda: store.write_now("good", Note(text="y")),
            lambda: store.delete_now("good"),
        ):
            with pytest.raises(StateNotWritten, match="Read-only file system"):
                change()

    alone(work)


def test_a_share_that_is_not_mounted_is_a_problem_and_stays_untouched(tmp_path: Path) -> None:
    def work() -> None:
        sh(f"mount -t tmpfs none {tmp_path}")
        pool = storage.declare(Pool(name="san", path=str(tmp_path), shared=True))
        (tmp_path / "web.raw").touch()
        sh(f"umount {tmp_path}")
        assert storage.facts(pool).problem.endswith(f"nothing is mounted at {tmp_path}?")
        with pytest.raises(PoolUnusable):
            storage.declare(pool)
        with pytest.raises(PoolUnusable):
            storage.delete_volume(pool, "web.raw")
        assert list(tmp_path.iterdir()) == []

    alone(work)


def test_a_pool_that_is_mounted_read_only_cannot_be_used(tmp_path: Path) -> None:
    def work() -> None:
        sh(f"mount -t tmpfs none {tmp_path}")
        pool = storage.declare(Pool(name="san", path=str(tmp_path)))
        sh(f"mount -o remount,ro {tmp_path}")
        assert storage.facts(pool).problem == f"{tmp_path} cannot be written to"
        with pytest.raises(PoolUnusable, match="cannot be written to"):
            storage.declare(pool)

    alone(work)


def test_a_full_disk_takes_no_pool_and_keeps_no_half_identity(tmp_path: Path) -> None:
    def work() -> None:
        sh(f"mount -t tmpfs -o size=64k none {tmp_path}")
        fill(tmp_path)
        with pytest.raises(PoolUnusable, match="No space left on device"):
            storage.declare(Pool(name="san", path=str(tmp_path / "pool")))
        assert [path.name for path in tmp_path.iterdir()] == ["filler"]

    alone(work)


def test_a_file_system_without_hard_links_gets_an_identity_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(draft: Path, path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # FAT and some SMB shares; no such module here
    pool = storage.declare(Pool(name="usb", path=str(tmp_path)))
    storage.check(pool)
    assert [path.name for path in tmp_path.iterdir()] == [IDENTITY_FILE]
