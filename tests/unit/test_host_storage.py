"""A pool is its identity, not its path; a volume never leaves it."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from sterna.errors import PoolUnusable, VolumeForbidden
from sterna.host import storage
from sterna.host.storage import IDENTITY_FILE
from sterna.model.host import Pool


def pool_at(path: Path, **changes: object) -> Pool:
    return replace(Pool(name="fast", path=str(path)), **changes)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return storage.declare(pool_at(tmp_path / "pool"))


# ---- identity -------------------------------------------------------------------------------


def test_a_new_pool_gets_a_directory_and_an_identity(tmp_path: Path) -> None:
    pool = storage.declare(pool_at(tmp_path / "a" / ".." / "b" / "pool"))
    assert pool.path == str(tmp_path / "b" / "pool")
    kept = json.loads((Path(pool.path) / IDENTITY_FILE).read_text())
    assert kept["version"] == 1
    assert kept["identity"] == pool.identity
    assert [path.name for path in Path(pool.path).iterdir()] == [IDENTITY_FILE]
    storage.check(pool)


def test_a_second_host_joins_the_identity_it_finds(pool: Pool) -> None:
    joined = storage.declare(pool_at(Path(pool.path), shared=True))
    assert joined.identity == pool.identity


def test_hosts_that_declare_a_shared_pool_at_once_agree(tmp_path: Path) -> None:
    start = Barrier(8)

    def declare(_: int) -> str:
        start.wait()
        return storage.declare(pool_at(tmp_path, shared=True)).identity

    with ThreadPoolExecutor(8) as hosts:
        assert len(set(hosts.map(declare, range(8)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == [IDENTITY_FILE]


def test_a_pool_that_names_an_identity_joins_only_that(pool: Pool) -> None:
    with pytest.raises(PoolUnusable, match="holds another pool"):
        storage.declare(replace(pool, identity="a11ce000-0000-4000-8000-000000000000"))


def test_a_shared_pool_is_not_made_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(PoolUnusable, match="nothing is mounted at"):
        storage.declare(pool_at(tmp_path / "mnt", shared=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shared", [False, True])
def test_a_pool_whose_identity_is_gone_is_a_problem_and_is_not_made_again(
    pool: Pool, shared: bool
) -> None:
    pool = replace(pool, shared=shared)
    (Path(pool.path) / IDENTITY_FILE).unlink()
    facts = storage.facts(pool)
    assert facts.problem.endswith(f"nothing is mounted at {pool.path}?")
    assert (facts.total, facts.free) == (0, 0)
    with pytest.raises(PoolUnusable, match="nothing is mounted at"):
        storage.declare(pool)
    assert list(Path(pool.path).iterdir()) == []


def test_a_directory_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    gone = pool_at(tmp_path / "gone", identity="4c1c2f9e-8d65-4c53-a4a5-28e44a3b8a0f")
    assert "nothing is mounted at" in storage.facts(gone).problem


def test_another_pool_in_the_place_is_a_problem(tmp_path: Path, pool: Pool) -> None:
    other = storage.declare(pool_at(tmp_path / "other"))
    moved = replace(other, path=pool.path)
    assert "holds another pool" in storage.facts(moved).problem


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\x00" * 100, b'{"version": 2, "identity": "x"}', b"[]"]
)
def test_a_damaged_identity_is_neither_used_nor_replaced(pool: Pool, content: bytes) -> None:
    path = Path(pool.path) / IDENTITY_FILE
    path.write_bytes(content)
    assert "is damaged" in storage.facts(pool).problem
    with pytest.raises(PoolUnusable, match="is damaged"):
        storage.declare(replace(pool, identity=""))
    assert path.read_bytes() == content


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PoolUnusable, match="pool fast cannot be used"):
        storage.declare(pool_at(tmp_path / "file"))
    with pytest.raises(PoolUnusable, match="Not a directory"):
        storage.declare(pool_at(tmp_path / "file" / "pool"))
    assert (tmp_path / "file").read_text() == "mine"


def test_facts_tell_the_space_of_the_file_system(pool: Pool) -> None:
    facts = storage.facts(pool)
    assert facts.problem == ""
    assert 0 < facts.free <= facts.total


def test_withdrawing_leaves_what_others_may_need(tmp_path: Path) -> None:
    empty = storage.declare(pool_at(tmp_path / "empty"))
    storage.withdraw(empty)
    assert list(Path(empty.path).iterdir()) == []

    used = storage.declare(pool_at(tmp_path / "used"))
    (Path(used.path) / "web.qcow2").touch()
    storage.withdraw(used)
    storage.check(used)

    (tmp_path / "shared").mkdir()
    shared = storage.declare(pool_at(tmp_path / "shared", shared=True))
    storage.withdraw(shared)
    storage.check(shared)


# ---- volumes --------------------------------------------------------------------------------


def test_a_volume_is_a_file_in_its_pool(pool: Pool) -> None:
    assert storage.volume_path(pool, "web-vda.qcow2") == Path(pool.path) / "web-vda.qcow2"


@pytest.mark.parametrize(
    "volume",
    ["", ".", "..", "../x", "a/b", "/etc/passwd", IDENTITY_FILE, "a\0b", "a\nb", "é" * 128],
)
def test_a_volume_that_is_no_plain_file_name_is_forbidden(pool: Pool, volume: str) -> None:
    with pytest.raises(VolumeForbidden):
        storage.volume_path(pool, volume)


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "sub/file", "dangling/../../x"])
def test_a_link_that_leads_out_of_the_pool_is_forbidden(pool: Pool, target: str) -> None:
    (Path(pool.path) / "sub").mkdir()
    (Path(pool.path) / "evil").symlink_to(target)
    with pytest.raises(VolumeForbidden, match="outside the pool"):
        storage.volume_path(pool, "evil")


def test_a_chain_of_links_that_leads_out_is_forbidden(pool: Pool) -> None:
    (Path(pool.path) / "one").symlink_to("two")
    (Path(pool.path) / "two").symlink_to("/etc/hostname")
    with pytest.raises(VolumeForbidden, match="outside the pool"):
        storage.volume_path(pool, "one")


def test_a_link_that_goes_in_circles_is_forbidden(pool: Pool) -> None:
    (Path(pool.path) / "loop").symlink_to("loop")
    with pytest.raises(VolumeForbidden):
        storage.volume_path(pool, "loop")


def test_links_within_the_pool_and_a_pool_behind_a_link_are_fine(
    tmp_path: Path, pool: Pool
) -> None:
    (Path(pool.path) / "base").touch()
    (Path(pool.path) / "alias").symlink_to("base")
    (tmp_path / "way").symlink_to(pool.path)
    behind = replace(pool, path=str(tmp_path / "way"))
    assert storage.volume_path(behind, "alias") == tmp_path / "way" / "alias"


def test_deleting_a_volume_twice_is_fine_but_not_while_the_pool_is_away(pool: Pool) -> None:
    volume = Path(pool.path) / "web.raw"
    volume.touch()
    (Path(pool.path) / ".web.raw.0123abcd.part").touch()  # its maker was killed
    (Path(pool.path) / ".web.raw.b.0123abcd.part").touch()  # of another volume
    storage.delete_volume(pool, "web.raw")
    assert not (Path(pool.path) / ".web.raw.0123abcd.part").exists()
    (Path(pool.path) / ".web.raw.b.0123abcd.part").unlink()
    storage.delete_volume(pool, "web.raw")
    assert not volume.exists()
    (Path(pool.path) / IDENTITY_FILE).unlink()
    with pytest.raises(PoolUnusable, match="nothing is mounted at"):
        storage.delete_volume(pool, "web.raw")
