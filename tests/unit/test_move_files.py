"""Files from one host to the other: both ends in one process, and everything that can go wrong between."""

import asyncio
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from operations_rig import in_loop
from sterna.errors import (
    BadSpec,
    BaseDiffers,
    Failed,
    FileChanged,
    FileClosed,
    FileDiffers,
    FileNotStored,
    FileUnreadable,
    HostUnreachable,
    VolumeExists,
)
from sterna.host import chunks
from sterna.host.parts import DIRECTORY, EXPIRES_S, Part, Parts
from sterna.host.registry import Pools
from sterna.host.store import Store
from sterna.model.disk import Volume
from sterna.model.host import Pool
from sterna.model.reservation import FileOffer, Reservation
from sterna.model.vm import Ownership, OwnershipState, VMRecord, VMSpec
from sterna.move import files
from sterna.move.arriving import ArrivingFiles
from sterna.move.files import Sending, Sent, send
from sterna.vms.kept import Kept
from sterna.vms.machine import VM

CHUNK = 64 << 10
SPEC = VMSpec(name="tern", id="9d2b8f5e-6a51-4f0c-8d5e-1f2a3b4c5d6e")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", CHUNK)
    monkeypatch.setattr(files, "RETRY_S", 0.001)


@dataclass
class Ends:
    """A source with files in a folder, a target with a pool, and a wire that can be disturbed."""

    folder: Path
    name: str = "hv-b"
    pools: Pools = field(init=False)
    parts: Parts = field(init=False)
    vm: VM = field(init=False)
    arriving: ArrivingFiles = field(init=False)
    puts: list[tuple[int, int]] = field(default_factory=list)
    breaks_after: int | None = None  # puts until the connection is gone
    read_back: dict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    hiccups: int = 0  # questions that are not answered

    async def begin(self) -> None:
        self.pools = Pools(self.folder / "pools", host=self.name)
        await self.pools.create(Pool(name="local", path=str(self.folder / "pool")))
        self.parts = Parts(self.pools, host=self.name)
        self.kept = Kept(self.folder / "kept", self.pools)
        ownership = Ownership(state=OwnershipState.RESERVED, epoch=2)
        store = Store(self.folder / "vms", VMRecord)
        self.vm = VM(VMRecord(spec=SPEC, ownership=ownership), store, self.folder / "run")

    def make(self, name: str, *pieces: bytes | int, is_base: bool = False) -> Path:
        """A file of the source: bytes are data, numbers are holes."""
        path = self.folder / name
        with path.open("wb") as file:
            for piece in pieces:
                if isinstance(piece, int):
                    file.seek(piece, os.SEEK_CUR)
                else:
                    file.write(piece)
            file.truncate()
        return path

    def reserve(
        self, *paths: Path, live: bool = False, is_base: bool = False, seeded: bool = False
    ) -> None:
        offers = [
            FileOffer(
                place=Volume(pool="local", volume=path.name),
                size=path.stat().st_size,
                is_base=is_base,
            )
            for path in paths
        ]
        reservation = Reservation(
            operation="op",
            epoch=2,
            source="hv-a",
            spec=SPEC,
            live=live,
            paused=False,
            accel="",
            files=tuple(offers),
            seeded=seeded,
        )
        self.arriving = ArrivingFiles(self.vm, reservation, self.parts, self.kept)

    async def send(self, *paths: Path, **how: object) -> Sent:
        items = [
            Sending(
                n=n, path=path, size=found.st_size, allocated=found.st_blocks * 512, disk=path.name
            )
            for n, path in enumerate(paths)
            for found in [path.stat()]
        ]
        return await send(items, self, "op", host="hv-a", **how)

    def there(self, path: Path) -> Path:
        return self.folder / "pool" / path.name

    def part(self, path: Path) -> Path:
        return self.folder / "pool" / DIRECTORY / SPEC.id / path.name

    # ---- the wire --------------------------------------------------------------------------

    def _hiccup(self) -> None:
        if self.hiccups:
            self.hiccups -= 1
            raise HostUnreachable(peer=self.name, url="wire", reason="it broke")

    async def held(self, operation, n, first):
        self._hiccup()
        return await self.arriving.digests(n, first)

    async def put(self, operation, n, chunk, blocks, data):
        self._hiccup()
        if self.breaks_after is not None and len(self.puts) >= self.breaks_after:
            if n:  # the file before it goes through, however long that is read back
                await self.read_back[n - 1].wait()
            raise HostUnreachable(peer=self.name, url="wire", reason="it broke")
        self.puts.append((n, chunk))
        await self.arriving.put(n, chunk, blocks, data)

    async def finish(self, operation, n, root):
        self._hiccup()
        answer = await self.arriving.finish(n, root)
        if answer.state == "same":
            self.read_back[n].set()
        return answer


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)


def rubble(size: int) -> bytes:
    return os.urandom(size)


def still_open(folder: Path) -> list[str]:
    """Files below it that this process has open, deleted ones included."""
    names = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return [name for name in names if name.startswith(str(folder))]


def open_files() -> list[str]:
    return [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]


@in_loop
async def test_files_arrive_as_they_were_and_stay_thin(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    thin = ends.make("a.raw", 3 * CHUNK + 8192, rubble(4096), 5 * CHUNK, rubble(CHUNK), 999)
    whole, empty = ends.make("b.qcow2", rubble(2 * CHUNK + 5)), ends.make("c")
    samples = []
    ends.reserve(thin, whole, empty)
    sent = await ends.send(thin, whole, empty, report=samples.append)
    assert [ends.there(path).exists() for path in (thin, whole, empty)] == [False] * 3
    await ends.arriving.place()
    for path in (thin, whole, empty):
        assert ends.there(path).read_bytes() == path.read_bytes()
        assert ends.there(path).stat().st_blocks <= 1.05 * path.stat().st_blocks
    assert sent.sent <= 4096 + CHUNK + 4096 + 2 * CHUNK + 5
    assert sent.zero + sent.sent == thin.stat().st_size + whole.stat().st_size
    assert sent.present == 0
    assert samples[-1].disks == {"a.raw": 1.0, "b.qcow2": 1.0, "c": 1.0}
    assert not (tmp_path / "pool" / DIRECTORY).exists()
    await ends.arriving.place()


@in_loop
async def test_what_arrived_before_a_failure_is_not_sent_again(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SILENCE_S", 0.01)
    ends = Ends(tmp_path)
    await ends.begin()
    one, two = ends.make("one", rubble(4 * CHUNK)), ends.make("two", rubble(10 * CHUNK))
    ends.reserve(one, two)
    ends.breaks_after = 12
    with pytest.raises(HostUnreachable):
        await ends.send(one, two)
    with pytest.raises(Failed, match="two has not arrived"):
        await ends.arriving.place()
    await ends.arriving.close()
    assert not ends.there(one).exists()
    held = [ends.parts.held(SPEC.id, Volume(pool="local", volume=p.name)) for p in (one, two)]
    assert held == [4 * CHUNK, 8 * CHUNK]
    assert ends.parts.held(SPEC.id, Volume(pool="local", volume="three")) == 0
    ends.breaks_after, ends.puts = None, []
    flip(ends.part(two), 100)  # whatever happened to it meanwhile
    ends.reserve(one, two)
    sent = await ends.send(one, two)
    assert (1, 0) in ends.puts
    assert sent.sent == len(ends.puts) * CHUNK == 3 * CHUNK
    assert sent.present == 11 * CHUNK
    await ends.arriving.place()
    assert ends.there(one).read_bytes() == one.read_bytes()
    assert ends.there(two).read_bytes() == two.read_bytes()


@in_loop
async def test_what_is_zero_now_is_zero_there_whatever_an_earlier_try_left(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(4 * CHUNK))
    ends.reserve(disk)
    await ends.send(disk)
    await ends.arriving.close()
    ends.make("disk", CHUNK, rubble(4096), CHUNK, rubble(CHUNK))
    ends.reserve(disk)
    await ends.send(disk)
    await ends.arriving.place()
    assert ends.there(disk).read_bytes() == disk.read_bytes()
    assert ends.there(disk).stat().st_blocks <= disk.stat().st_blocks + 8


@in_loop
async def test_a_byte_that_storage_turned_is_found_and_sent_again(tmp_path, monkeypatch):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(6 * CHUNK))
    ends.reserve(disk)
    store, turned = Part.store, []

    def bad(part, chunk, blocks, data):
        store(part, chunk, blocks, data)
        if chunk == 3 and not turned:
            turned.append(chunk)
            flip(part.path, 3 * CHUNK + 7)

    monkeypatch.setattr(Part, "store", bad)
    await ends.send(disk)
    assert ends.puts.count((0, 3)) == 2
    assert len(ends.puts) == 7
    await ends.arriving.place()
    assert ends.there(disk).read_bytes() == disk.read_bytes()


@in_loop
async def test_a_file_that_storage_never_gives_back_right_never_becomes_the_disk(
    tmp_path, monkeypatch
):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(2 * CHUNK))
    ends.reserve(disk)
    store = Part.store

    def bad(part, chunk, blocks, data):
        store(part, chunk, blocks, data)
        flip(part.path, chunk * CHUNK)

    monkeypatch.setattr(Part, "store", bad)
    with pytest.raises(FileDiffers):
        await ends.send(disk)
    with pytest.raises(Failed, match="has not arrived"):
        await ends.arriving.place()
    await ends.arriving.close()
    assert not ends.there(disk).exists()


@in_loop
async def test_a_source_that_changes_or_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(4 * CHUNK))
    ends.reserve(disk)
    put = ends.put

    async def meddling(operation, n, chunk, blocks, data):
        await put(operation, n, chunk, blocks, data)
        if chunk == 2:
            flip(disk, 0)

    monkeypatch.setattr(ends, "put", meddling)
    with pytest.raises(FileChanged, match="was changed"):
        await ends.send(disk)

    await ends.arriving.close()
    ends.reserve(disk, live=True)  # a new part: nothing of it is read

    def broken(*_about):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(chunks, "read", broken)
    with pytest.raises(FileUnreadable, match="disk on hv-a cannot be read: Input/output error"):
        await ends.send(disk)
    await ends.arriving.close()


@in_loop
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_source_that_changes_after_its_turn_is_an_error_too(tmp_path, is_replaced):
    """Other files go for hours; whoever writes to the first one meanwhile would lose that."""
    ends = Ends(tmp_path)
    await ends.begin()
    one, two = ends.make("one", rubble(CHUNK)), ends.make("two", rubble(CHUNK))
    times = one.stat()
    ends.reserve(one, two)
    finish = ends.finish

    async def meddling(operation, n, root):
        answer = await finish(operation, n, root)
        if n == 1 and is_replaced:
            ends.make("other", rubble(CHUNK)).replace(one)
            os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
        elif n == 1:
            flip(one, 0)
        return answer

    ends.finish = meddling
    with pytest.raises(FileChanged, match="one"):
        await ends.send(one, two)
    await ends.arriving.close()


@in_loop
async def test_a_template_that_is_there_is_compared_and_never_written(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    base = ends.make("base.qcow2", rubble(3 * CHUNK))
    ends.there(base).write_bytes(base.read_bytes())
    ends.reserve(base, live=True, is_base=True)
    sent = await ends.send(base)
    assert (sent.sent, sent.present) == (0, 3 * CHUNK)
    await ends.arriving.place()
    await ends.arriving.close()

    flip(ends.there(base), CHUNK)
    before = ends.there(base).read_bytes()
    ends.reserve(base, live=True, is_base=True)
    with pytest.raises(BaseDiffers) as caught:
        await ends.send(base)
    assert "--flatten" in caught.value.advice
    await ends.arriving.close()
    ends.make("base.qcow2", rubble(CHUNK))
    ends.reserve(base, live=True, is_base=True)
    with pytest.raises(BaseDiffers):
        await ends.send(base)
    await ends.arriving.close()
    assert ends.there(base).read_bytes() == before


@in_loop
async def test_a_template_that_came_by_another_way_meanwhile_must_be_the_same(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    base = ends.make("base.qcow2", rubble(CHUNK))
    for is_same in (True, False):
        ends.there(base).unlink(missing_ok=True)
        ends.reserve(base, is_base=True)
        await ends.send(base)
        ends.there(base).write_bytes(base.read_bytes() if is_same else rubble(CHUNK))
        if is_same:
            await ends.arriving.place()
        else:
            with pytest.raises(BaseDiffers):
                await ends.arriving.place()
        assert ends.vm.record.made == ()
        await ends.arriving.close()


@in_loop
async def test_no_file_is_ever_replaced(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(CHUNK))
    ends.reserve(disk)
    await ends.send(disk)
    ends.there(disk).write_text("somebody's")
    with pytest.raises(VolumeExists):
        await ends.arriving.place()
    await ends.arriving.close()
    assert ends.there(disk).read_text() == "somebody's"


@in_loop
async def test_a_connection_that_breaks_for_a_moment_is_waited_for(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(8 * CHUNK))
    ends.reserve(disk)
    ends.hiccups = 7
    assert (await ends.send(disk)).sent == 8 * CHUNK
    await ends.arriving.close()


@in_loop
async def test_only_a_few_chunks_are_held_at_a_time(tmp_path, monkeypatch):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(40 * CHUNK))
    ends.reserve(disk)
    now, most, put = set(), [], ends.put

    async def counting(operation, n, chunk, blocks, data):
        now.add(chunk)
        most.append(len(now))
        await put(operation, n, chunk, blocks, data)
        now.discard(chunk)

    monkeypatch.setattr(ends, "put", counting)
    await ends.send(disk)
    assert 1 < max(most) <= files.IN_FLIGHT
    await ends.arriving.close()


@in_loop
async def test_a_cancelled_copy_leaves_no_thread_and_no_open_file(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(20 * CHUNK))
    ends.reserve(disk)
    sending = asyncio.create_task(ends.send(disk, pacer=files.Pacer(CHUNK)))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await ends.arriving.close()
    assert not [path for path in open_files() if path.startswith(str(tmp_path))]


@in_loop
async def test_what_comes_late_or_makes_no_sense_is_refused(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(CHUNK))
    ends.reserve(disk)
    for n, chunk, blocks, data in (
        (1, 0, 0, b""),
        (-1, 0, 0, b""),
        (0, 1, 0, b""),
        (0, -1, 0, b""),
        (0, 0, 1, b"short"),
        (0, 0, 1 << 16, bytes(4096)),
    ):
        with pytest.raises(BadSpec):
            await ends.arriving.put(n, chunk, blocks, data)
    await ends.send(disk)
    with pytest.raises(FileClosed):
        await ends.arriving.put(0, 0, 0, b"")
    await ends.arriving.close()
    with pytest.raises(FileClosed):
        await ends.arriving.digests(0, 0)


@in_loop
async def test_a_full_disk_says_so(tmp_path, monkeypatch):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(CHUNK))
    ends.reserve(disk)

    def full(*_about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "store", full)
    with pytest.raises(FileNotStored, match=r"local/disk .* on hv-b: No space left on device"):
        await ends.send(disk)
    await ends.arriving.close()


@in_loop
async def test_parts_of_a_live_move_go_with_it_and_others_expire(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(CHUNK))
    ends.reserve(disk, live=True)
    await ends.send(disk)
    await ends.arriving.close()
    assert not (tmp_path / "pool" / DIRECTORY).exists()

    ends.reserve(disk, live=True, seeded=True)
    await ends.send(disk)
    old = time.time() - EXPIRES_S - 60
    os.utime(ends.part(disk), (old, old))
    ends.parts.sweep()
    assert ends.part(disk).exists()  # in use
    await ends.arriving.close()
    os.utime(ends.part(disk))
    ends.parts.sweep()
    assert ends.part(disk).exists()
    os.utime(ends.part(disk), (old, old))
    ends.parts.sweep()
    assert not (tmp_path / "pool" / DIRECTORY).exists()


@in_loop
async def test_what_a_kept_copy_holds_is_not_sent(tmp_path):
    """A VM comes back to a host that kept its disk: only what changed since goes over the wire."""
    ends = Ends(tmp_path)
    await ends.begin()
    pieces = [rubble(CHUNK) for _ in range(4)]
    disk = ends.make("disk", *pieces)
    kept = ends.there(disk)
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(pieces[0] + rubble(CHUNK) + pieces[2][:-1])
    await ends.kept.keep("web1", SPEC.id, [Volume(pool="local", volume="disk")], "left", 1.0)
    assert not kept.exists()

    ends.reserve(disk)
    sent = await ends.send(disk)
    await ends.arriving.place()
    assert kept.read_bytes() == disk.read_bytes()
    assert (sent.present, sorted(ends.puts)) == (CHUNK, [(0, 1), (0, 2), (0, 3)])
    assert len(ends.kept.list()) == 1
    await ends.arriving.close()


@in_loop
async def test_a_late_question_does_not_bring_back_what_a_kept_copy_holds(tmp_path):
    """Its chunk was read back as zeroes; nothing is borrowed from then on."""
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(CHUNK), CHUNK)
    kept = ends.there(disk)
    kept.write_bytes(rubble(2 * CHUNK))
    await ends.kept.keep("web1", SPEC.id, [Volume(pool="local", volume="disk")], "left", 1.0)
    ends.reserve(disk)
    await ends.send(disk)
    await ends.arriving.digests(0, 0)
    await ends.arriving.place()
    assert kept.read_bytes() == disk.read_bytes()
    await ends.arriving.close()


@in_loop
async def test_somebody_elses_file_is_not_ours_to_remove_afterwards(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    one, two = ends.make("one", rubble(CHUNK)), ends.make("two", rubble(CHUNK))
    ends.reserve(one, two)
    await ends.vm.write(made=tuple(Volume(pool="local", volume=name) for name in ("one", "two")))
    await ends.send(one, two)
    ends.there(two).write_text("somebody's")
    with pytest.raises(VolumeExists):
        await ends.arriving.place()
    assert ends.vm.record.made == (Volume(pool="local", volume="one"),)
    await ends.arriving.close()


@in_loop
async def test_a_placing_that_was_cut_off_is_gone_on_with(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(CHUNK))
    ends.reserve(disk)
    await ends.send(disk)
    ends.there(disk).hardlink_to(ends.part(disk))
    await ends.arriving.place()
    assert ends.there(disk).read_bytes() == disk.read_bytes()
    assert not ends.part(disk).exists()
    await ends.arriving.close()


@in_loop
async def test_an_end_waits_for_a_part_that_is_just_being_opened(tmp_path, monkeypatch):
    ends = Ends(tmp_path)
    await ends.begin()
    disk = ends.make("disk", rubble(CHUNK))
    ends.reserve(disk, live=True)
    opened, really = ends.parts.open, threading.Event()

    def slowly(*what):
        really.wait(10)
        return opened(*what)

    monkeypatch.setattr(ends.parts, "open", slowly)
    asking = asyncio.ensure_future(ends.arriving.digests(0, 0))
    await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(ends.arriving.close())
    await asyncio.sleep(0.01)
    really.set()
    await closing
    with pytest.raises(FileClosed):
        await asking
    assert not (tmp_path / "pool" / DIRECTORY).exists()
    assert still_open(tmp_path / "pool") == []


@in_loop
async def test_files_are_written_while_many_others_are_read_back(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    end = threading.Event()
    reading = [ends.parts.check(lambda: end.wait(10)) for _ in range(20)]
    async with asyncio.timeout(5):
        assert await ends.parts.run(lambda: "written") == "written"
    end.set()
    await asyncio.gather(*reading)


@in_loop
async def test_an_id_may_have_whatever_ids_may_have(tmp_path):
    ends = Ends(tmp_path)
    await ends.begin()
    ends.parts.release(ends.parts.open("my_vm-1", Volume(pool="local", volume="disk"), 1))


@in_loop
async def test_bandwidth_is_kept_and_follows_a_change():
    pacer = files.Pacer(1 << 20)
    began = time.monotonic()
    for _ in range(4):
        await pacer.wait(50 << 10)
    assert time.monotonic() - began >= 200 / 1024
    slow = asyncio.ensure_future(pacer.wait(100 << 20))  # would take 100 s
    await asyncio.sleep(0)
    pacer.change(1 << 30)
    async with asyncio.timeout(10):
        await slow
    pacer.change(1 << 10)
    slow = asyncio.ensure_future(pacer.wait(1 << 20))
    await asyncio.sleep(0.05)
    assert not slow.done()
    pacer.change(None)
    async with asyncio.timeout(10):
        await slow
        await pacer.wait(1 << 40)
