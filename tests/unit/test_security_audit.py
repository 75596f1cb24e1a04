"""The chain of the audit, its files cut, changed and full, and who is written how often."""

import asyncio
import contextlib
import json
import resource
import shutil
import signal

import pytest

from operations_rig import in_loop
from sterna.errors import AuditNotWritten
from sterna.security import audit as audits
from sterna.security import chain
from sterna.security.audit import Audit
from sterna.security.chain import Chain, verify


def written(folder, count=5):
    made = Chain(folder)
    for number in range(count):
        made.append({"what": "done", "who": f"user-{number}"})
    made.close()
    return folder / "audit-000001.jsonl"


@contextlib.contextmanager
def no_room(size):
    """No file of this process grows beyond `size` bytes: the kernel's own refusal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def changed(path, line, old, new):
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_bytes(b"".join(lines))


def test_what_is_as_it_was_written_is_found_so_over_files_and_restarts(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "MAX_FILE", 400)
    written(tmp_path)
    written(tmp_path)
    assert len(chain.files(tmp_path)) > 2
    found = verify(tmp_path)
    assert (found.entries, found.first, found.last, found.broken) == (10, 1, 10, "")
    assert [one["who"] for one in chain.entries(tmp_path)][:2] == ["user-4", "user-3"]
    shutil.move(chain.files(tmp_path)[0], tmp_path / "archived")  # the oldest, by an administrator
    found = verify(tmp_path)
    assert (found.broken, found.first > 1, found.last) == ("", True, 10)
    assert (tmp_path / "head").stat().st_mode & 0o777 == 0o600
    assert chain.files(tmp_path)[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("harm", "place"),
    [
        (lambda f: changed(f, 2, b"user-1", b"user-9"), "audit-000001.jsonl line 2: "),
        (lambda f: changed(f, 5, b"user-4", b"user-9"), "audit-000001.jsonl line 5: it was changed"),
        (lambda f: changed(f, 3, b'"n":3', b'"n":4'), "audit-000001.jsonl line 3: it is number 4"),
        (lambda f: changed(f, 3, b"{", b"("), "audit-000001.jsonl line 3: it is no entry"),
        (lambda f: f.write_bytes(b"".join(f.read_bytes().splitlines(True)[:3])),
         "audit-000001.jsonl line 3: lines 4 to 5 are missing after it"),
        (lambda f: f.write_bytes(b"".join(f.read_bytes().splitlines(True)[i] for i in (0, 2, 3, 4))),
         "audit-000001.jsonl line 2: it is number 3, and 2 should be here"),
        (lambda f: f.unlink(), "audit: lines 1 to 5 are missing after it"),
        (lambda f: (f.parent / "head").unlink(), "head: it is missing"),
    ],
)  # fmt: skip
def test_the_first_line_that_is_not_as_it_was_is_named(tmp_path, harm, place):
    harm(written(tmp_path))
    assert verify(tmp_path).broken.startswith(place)
    # A daemon that starts on it goes on writing, and hides nothing.
    written(tmp_path, 1)
    assert verify(tmp_path).broken


def test_a_line_that_a_crash_has_cut_is_kept_apart_and_told(tmp_path):
    file = written(tmp_path)
    whole = file.read_bytes()
    for torn in (b'{"n":6,"pr', whole.splitlines()[-1]):
        file.write_bytes(whole + torn)
        assert "cut off" in verify(tmp_path).broken
        written(tmp_path, 1)
        found = verify(tmp_path)
        assert found.broken == ""
        told = [one for one in chain.entries(tmp_path) if one["what"] == "torn"]
        assert f"{len(torn)} bytes" in told[0]["text"]
        assert (tmp_path / told[0]["kept"]).read_bytes() == torn
        whole = file.read_bytes()


def test_a_host_starts_on_a_full_disk_and_tells_later_what_was_cut(tmp_path):
    file = written(tmp_path)
    with file.open("ab") as out:
        out.write(b'{"n":6,"prev":"')
    with no_room(10):
        one = Chain(tmp_path)
        with pytest.raises(OSError):
            one.append({"who": "alice"})
    assert one.append({"who": "bob"}) == 7
    one.close()
    assert verify(tmp_path).broken == ""
    torn = next(row for row in chain.entries(tmp_path) if row.get("what") == "torn")
    assert "15 bytes, which could not be kept" in torn["text"]


@in_loop
async def test_a_full_disk_refuses_what_is_new_and_owes_what_is_done(tmp_path):
    one = Audit(tmp_path)
    first = await one.begin({"who": "alice"})
    size = sum(path.stat().st_size for path in chain.files(tmp_path))
    with no_room(size + 20):
        await one.end(first, {"status": 200})  # it is done: never an error
        with pytest.raises(AuditNotWritten, match="nothing was done"):
            await one.begin({"who": "bob"})
        one.note({"who": "host:hv-b", "path": "take"})
        await one.refused({"who": "mallory", "from": "10.0.0.9"})
        assert "cannot be written" in one.problem
        assert sum(path.stat().st_size for path in chain.files(tmp_path)) == size
        assert verify(tmp_path).broken == ""
    await one.begin({"who": "carol"})
    assert one.problem == ""
    rows = await one.find()
    await one.close()
    assert [row["who"] for row in rows] == ["carol", "mallory", "host:hv-b", "alice"]
    assert rows[3]["status"] == 200  # told late
    assert rows[1]["late"] is True
    assert verify(tmp_path).broken == ""


@in_loop
async def test_strangers_cannot_fill_the_disk(tmp_path, monkeypatch):
    one = Audit(tmp_path)
    now = [1000.0]
    monkeypatch.setattr(audits.clock, "monotonic", lambda: now[0])
    for _ in range(3):
        await asyncio.gather(*(one.refused({"from": "10.0.0.9"}) for _ in range(100)))
    await one.refused({"from": "10.0.0.10"})
    assert len(await one.find()) == audits.PER_MINUTE + 1
    now[0] += 61
    await one.refused({"from": "10.0.0.9"})
    assert (await one.find())[0]["unwritten"] == 300 - audits.PER_MINUTE
    for number in range(2 * audits.MAX_ADDRESSES):
        one._count(f"10.1.{number >> 8}.{number & 255}")
    assert len(one._refusals) <= audits.MAX_ADDRESSES
    await one.close()


@in_loop
async def test_the_list_joins_what_was_asked_with_its_outcome(tmp_path):
    one = Audit(tmp_path)
    number = await one.begin({"who": "alice", "vm": "web", "path": "/v1/vms/web:start"})
    await one.begin({"who": "bob", "vm": "db"})
    await one.end(number, {"status": 409, "code": "vm.wrong-state"})
    rows = await one.find()
    assert [(row["who"], row["status"]) for row in rows] == [("bob", None), ("alice", 409)]
    assert [row["who"] for row in await one.find(vm="web")] == ["alice"]
    assert [row["who"] for row in await one.find(who="bob")] == ["bob"]
    assert await one.find(since="9999") == []
    assert json.loads(chain.files(tmp_path)[0].read_text().splitlines()[0])["n"] == 1
    await one.close()
