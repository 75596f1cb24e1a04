"""Kept copies: renamed, listed, expired; and never deleted by a daemon that died in between."""

import asyncio
import threading
from pathlib import Path

import pytest

from sterna import clock
from sterna.errors import KeptInUse, KeptNotFound
from sterna.host.registry import Pools
from sterna.model.disk import Volume
from sterna.model.host import Pool
from sterna.vms.kept import Kept

DISK = Volume(pool="one", volume="web-vda.qcow2")
OTHER = Volume(pool="one", volume="web-vdb.raw")


@pytest.fixture
def pools(tmp_path: Path) -> Pools:
    pools = Pools(tmp_path / "pools", host="a")
    asyncio.run(pools.create(Pool(name="one", path=str(tmp_path / "one"))))
    for volume in (DISK, OTHER):
        (tmp_path / "one" / volume.volume).write_text(volume.volume)
    return pools


def here(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "one").iterdir()} - {".sterna-pool.json"}


def kept_in(tmp_path: Path, pools: Pools) -> Kept:
    kept = Kept(tmp_path / "kept", pools)
    assert kept.load() == []
    return kept


def test_a_kept_file_has_another_name_and_the_same_content(tmp_path, pools):
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.keep("web", "id-1", [DISK], "moved to b", 7))
    (copy,) = kept.list()
    (file,) = copy.files
    assert (tmp_path / "one" / file.now).read_text() == DISK.volume
    assert here(tmp_path) == {file.now, OTHER.volume}
    assert file.now.startswith("web-vda.qcow2.kept-2")
    assert copy.expires > clock.later(6.9 * 86400)
    assert pools.volume_path("one", file.now).exists()


def test_a_wish_to_keep_survives_the_daemon_and_is_carried_out_by_the_next(tmp_path, pools):
    asyncio.run(kept_in(tmp_path, pools).intend("web", "id-1", [DISK], "moved", 1))
    kept = kept_in(tmp_path, pools)
    assert kept.list() == []
    asyncio.run(kept.clear("id-1", [DISK, OTHER]))
    (file,) = kept.list()[0].files
    assert here(tmp_path) == {file.now}
    asyncio.run(kept.clear("id-1", [DISK, OTHER]))
    assert here(tmp_path) == {file.now}


def test_a_wish_that_was_half_carried_out_is_finished(tmp_path, pools):
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.intend("web", "id-1", [DISK, OTHER], "moved", 1))
    (copy,) = kept._copies.values()
    (tmp_path / "one" / DISK.volume).rename(tmp_path / "one" / copy.files[0].now)
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.clear("id-1", [DISK, OTHER]))
    assert here(tmp_path) == {file.now for file in kept.list()[0].files}


def test_a_later_move_does_not_take_back_what_an_earlier_one_wished(tmp_path, pools):
    leaving = [DISK]
    kept = Kept(tmp_path / "kept", pools, leaving_of=lambda _vm: leaving)
    asyncio.run(kept.intend("web", "id-1", [DISK], "storage move", 1))
    asyncio.run(kept.intend("web", "id-1", [OTHER], "moved", 1))
    asyncio.run(kept.forsake("id-1"))  # the second move failed
    asyncio.run(kept.clear("id-1", [DISK]))
    leaving.clear()
    asyncio.run(kept.forsake("id-1"))
    (copy,) = kept.list()
    assert copy.label == "storage move"
    assert here(tmp_path) == {copy.files[0].now, OTHER.volume}


def test_a_wish_stays_open_while_a_pool_of_its_files_is_away(tmp_path, pools):
    away = Volume(pool="two", volume="web-vdc.raw")
    asyncio.run(pools.create(Pool(name="two", path=str(tmp_path / "two"))))
    (tmp_path / "two" / away.volume).write_text("c")
    kept = Kept(tmp_path / "kept", pools, leaving_of=lambda _vm: [DISK, away])
    asyncio.run(kept.intend("web", "id-1", [DISK, away], "moved", 1))
    (tmp_path / "two").rename(tmp_path / "unmounted")
    asyncio.run(kept.clear("id-1", [DISK]))
    assert kept.list() == []
    (tmp_path / "unmounted").rename(tmp_path / "two")
    asyncio.run(kept.clear("id-1", [away]))
    (copy,) = kept.list()
    assert (tmp_path / "two" / copy.files[1].now).read_text() == "c"


def test_a_wish_that_is_taken_back_keeps_nothing(tmp_path, pools):
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.intend("web", "id-1", [DISK], "moved", 1))
    asyncio.run(kept.forsake("id-1"))
    asyncio.run(kept.clear("id-1", [DISK]))
    assert here(tmp_path) == {OTHER.volume}
    assert kept_in(tmp_path, pools).list() == []


def test_another_vms_file_is_deleted_whatever_is_kept_of_this_one(tmp_path, pools):
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.intend("web", "id-1", [DISK], "moved", 1))
    asyncio.run(kept.clear("id-2", [OTHER]))
    assert here(tmp_path) == {DISK.volume}


def test_what_has_expired_is_deleted_and_the_rest_is_not(tmp_path, pools):
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.keep("web", "id-1", [DISK], "old", -1))
    asyncio.run(kept.keep("web", "id-1", [OTHER], "new", 1))
    asyncio.run(kept.expire())
    (copy,) = kept.list()
    assert copy.label == "new"
    assert here(tmp_path) == {copy.files[0].now}


def test_a_copy_is_discarded_once(tmp_path, pools):
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.keep("web", "id-1", [DISK], "x", 1))
    (copy,) = kept.list()
    assert kept.users_of_pool("one") == {"web"}
    asyncio.run(kept.discard(copy.id))
    assert here(tmp_path) == {OTHER.volume}
    with pytest.raises(KeptNotFound):
        asyncio.run(kept.discard(copy.id))
    assert kept_in(tmp_path, pools).list() == []


def test_what_another_vm_uses_is_neither_deleted_nor_renamed_nor_discarded(tmp_path, pools):
    used = {DISK}
    kept = Kept(tmp_path / "kept", pools, lambda vm_id: used if vm_id != "id-2" else ())
    asyncio.run(kept.intend("web", "id-1", [DISK], "moved", 1))
    asyncio.run(kept.clear("id-1", [DISK, OTHER]))
    assert here(tmp_path) == {DISK.volume}
    used.clear()
    asyncio.run(kept.keep("web", "id-1", [DISK], "moved", 1))
    copy = kept.list()[-1]
    used.add(Volume(pool="one", volume=copy.files[0].now))
    with pytest.raises(KeptInUse):
        asyncio.run(kept.discard(copy.id))
    assert here(tmp_path) == {copy.files[0].now}


def test_a_file_that_cannot_leave_yet_is_kept_when_it_does(tmp_path, pools):
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.intend("web", "id-1", [DISK, OTHER], "moved", 1))
    asyncio.run(kept.clear("id-1", [OTHER]))  # QEMU has the first one open still
    assert kept.list() == []
    asyncio.run(kept.clear("id-1", [DISK]))
    (copy,) = kept.list()
    assert here(tmp_path) == {file.now for file in copy.files}


def test_a_share_that_hangs_does_not_hang_the_daemon(tmp_path, pools, monkeypatch):
    kept, check, loop = kept_in(tmp_path, pools), pools.require, threading.get_ident()
    asked = []

    def require(name: str) -> Pool:
        asked.append(threading.get_ident())
        return check(name)

    monkeypatch.setattr(pools, "require", require)
    asyncio.run(kept.keep("web", "id-1", [DISK], "moved", 1))
    assert asked
    assert loop not in asked


def test_neither_a_long_name_nor_a_long_time_is_in_the_way_of_keeping(tmp_path, pools):
    long = Volume(pool="one", volume="ü" * 120 + ".qcow2")
    (tmp_path / "one" / long.volume).write_text("long")
    kept = kept_in(tmp_path, pools)
    asyncio.run(kept.keep("web", "id-1", [long], "moved", 1e12))
    ((file,),) = [copy.files for copy in kept.list()]
    assert (tmp_path / "one" / file.now).read_text() == "long"
