"""Files that nobody writes any more, sent to the other host: chunk by chunk, only what it lacks.

Promises: what the target has already, from an earlier try or as a template, is not sent again;
zeroes are never sent; when `send` returns, the target has read every file back from its storage and
found it equal to what was read here. A file that changes meanwhile is an error, never a copy. Holds
a few chunks in memory, whatever the size of the files; a connection that breaks for a moment is
waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from sterna import clock
from sterna.errors import (
    FileChanged,
    FileDiffers,
    FileUnreadable,
    HostUnreachable,
    TooSlow,
)
from sterna.host import chunks
from sterna.host.chunks import DIGEST_BYTES, HOLE
from sterna.host.registry import Pools
from sterna.model.disk import Volume
from sterna.model.move import DiskProgress, Phase
from sterna.model.reservation import FileCheck
from sterna.model.travel import Travel
from sterna.model.vm import VMRecord
from sterna.tasks import finish
from sterna.vms import chain

T = TypeVar("T")

IN_FLIGHT = 4  # chunks: one is read, one is on its way, one is written, and one waits
SILENCE_S = 20.0  # without any answer
RETRY_S = 0.1  # first; doubles up to RETRY_MAX_S
RETRY_MAX_S = 2.0
TRIES = 3  # for a file that the target's storage gives back differently
REPORT_S = 0.25
NEARLY = 0.9999  # share of a file that is there and not yet read back


class Receiver(Protocol):
    """What is needed of the other host; `Peer` has it."""

    @property
    def name(self) -> str: ...
    async def held(self, operation: str, n: int, first: int) -> bytes: ...
    async def put(self, operation: str, n: int, chunk: int, blocks: int, data: bytes) -> None: ...
    async def finish(self, operation: str, n: int, root: str) -> FileCheck: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One file: `n` is its index in the reservation."""

    n: int
    path: Path
    size: int  # as it was told to the target
    allocated: int  # bytes on storage here
    disk: str  # whose it is, for the progress
    is_base: bool = False  # a template: one that differs there ends the move


@dataclass(slots=True, kw_only=True)
class Sent:
    """Bytes. `zero` were never read, or not sent; `present` were there already."""

    sent: int = 0  # of content
    present: int = 0
    zero: int = 0
    wire: int = 0  # bodies of requests and answers


def sendings(travel: Travel, record: VMRecord, pools: Pools) -> list[Sending]:
    """All files of `travel`."""
    disks = {
        Volume(pool=disk.pool, volume=image.volume): disk.name
        for disk in record.spec.disks
        for image in (*chain.own_images(record, disk), *disk.base)
    }
    return [
        Sending(
            n=n,
            path=pools.volume_path(parcel.source.pool, parcel.source.volume),
            size=parcel.offer.size,
            allocated=parcel.offer.allocated,
            disk=disks.get(parcel.source, parcel.source.volume),
            is_base=parcel.offer.is_base,
        )
        for n, parcel in enumerate(travel.files)
    ]


class Pacer:
    """No more than a rate in bytes/s on average, which may change; None: as fast as it goes."""

    def __init__(self, rate: int | None = None) -> None:
        self._rate = rate
        self._allowed = 0.0  # bytes until `_since`, as the rates were
        self._since = clock.monotonic()
        self._promised = 0.0
        self._changed = asyncio.Event()

    def change(self, rate: int | None) -> None:
        """From now on; who waits waits shorter or longer."""
        self._allowed, self._since = self._allowed_now(), clock.monotonic()
        self._rate = rate
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, size: int) -> None:
        """Until `size` more bytes may go."""
        self._promised = goal = max(self._promised, self._allowed_now()) + size
        while self._rate is not None and (left := goal - self._allowed_now()) > 0:
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left / self._rate):
                    await changed.wait()

    def _allowed_now(self) -> float:
        if self._rate is None:
            return max(self._allowed, self._promised)
        return self._allowed + self._rate * (clock.monotonic() - self._since)


async def send(  # noqa: PLR0913 - what, where to, how
    files: Sequence[Sending],
    peer: Receiver,
    operation: str,
    *,
    host: str,
    pacer: Pacer | None = None,
    report: Callable[[DiskProgress], None] = lambda _: None,
) -> Sent:
    """Bring all `files` to `peer`, templates first; what that took.

    They go one after the other, but one is read back there while the next one is on its way.

    Raises FileUnreadable, FileChanged, FileDiffers, HostUnreachable, and what the target says no
    with: BaseDiffers, FileNotStored, ReservationNotFound, TargetLost.
    """
    threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="send")
    try:
        meter = _Meter(files, Sent(), report)
        sender = _Sender(_Line(peer, operation, pacer or Pacer()), meter, host, threads)
        for are_bases in (True, False):
            await _all(sender.send(file) for file in files if file.is_base is are_bases)
        await sender.require_unchanged()
        return meter.sent
    finally:
        threads.shutdown(wait=False)


async def _all(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run them together. Raises the first error, when none of them is running any more."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


class _Line:
    """The questions of one operation to the other host, each asked until it is answered."""

    def __init__(self, peer: Receiver, operation: str, pacer: Pacer) -> None:
        self.host = peer.name
        self._peer = peer
        self._operation = operation
        self._pacer = pacer
        self._heard = clock.monotonic()

    async def held(self, n: int, first: int, most: int) -> bytes:
        """Some digests, for up to `most` chunks, of what is there."""
        held = await self._insist(lambda: self._peer.held(self._operation, n, first))
        if not held or len(held) % DIGEST_BYTES or len(held) > most * DIGEST_BYTES:
            raise FileDiffers(volume=f"file {n}", host=self.host)
        return held

    async def put(self, n: int, chunk: int, blocks: int, data: bytes) -> None:
        """One chunk, as fast as is allowed."""
        await self._pacer.wait(len(data))
        await self._insist(lambda: self._peer.put(self._operation, n, chunk, blocks, data))

    async def is_same(self, n: int, root: str) -> bool:
        """Wait until the file has been read back there."""
        while True:
            answer = await self._insist(lambda: self._peer.finish(self._operation, n, root))
            if answer.state != "checking":
                return answer.state == "same"

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """HostUnreachable after SILENCE_S without an answer to any question."""
        began, pause = clock.monotonic(), RETRY_S
        while True:
            try:
                answer = await ask()
            except (HostUnreachable, TooSlow):
                if clock.monotonic() - max(began, self._heard) > SILENCE_S:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_MAX_S)
            else:
                self._heard = clock.monotonic()
                return answer


class _Meter:
    """What there is to do, what has been done, told a few times a second."""

    def __init__(
        self, files: Sequence[Sending], sent: Sent, report: Callable[[DiskProgress], None]
    ) -> None:
        self.sent = sent
        self._report = report
        self._total = sum(file.allocated for file in files)
        self._shares = {file.disk: 0.0 for file in files}
        self._began = clock.monotonic()
        self._told: list[tuple[float, int]] = [(self._began, 0)]

    def at(self, file: Sending, share: float) -> None:
        """So much of `file` has been dealt with."""
        self._shares[file.disk] = share
        now, done = clock.monotonic(), self.sent.sent + self.sent.present
        if now - self._told[-1][0] < REPORT_S and share < 1:
            return
        self._told = [*self._told[-10:], (now, done)]
        (then, before), (last, after) = self._told[0], self._told[-1]
        self._report(
            DiskProgress(
                time_s=round(now - self._began, 3),
                phase=Phase.DISKS,
                transferred=done,
                remaining=max(0, self._total - done),
                total=max(self._total, done),
                rate=round((after - before) / (last - then)) if last > then else 0.0,
                disks={name: round(share, 4) for name, share in self._shares.items()},
            )
        )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk as it is here; `data`, squeezed, is None if the target has the same."""

    digest: bytes
    blocks: int = 0
    data: bytes | None = None
    content: int = 0  # bytes of its blocks that are not zero


@dataclass(frozen=True, slots=True)
class _Open:
    """A file that is being sent, open."""

    file: Sending
    fd: int
    size: int


class _Stamp(NamedTuple):
    """A file that was written to, or that has taken another's place, has another one."""

    inode: int
    size: int
    mtime_ns: int


class _Sender:
    def __init__(self, line: _Line, meter: _Meter, host: str, threads: ThreadPoolExecutor) -> None:
        self._line = line
        self._meter = meter
        self._sent = meter.sent
        self._host = host
        self._threads = threads
        self._stamps: list[tuple[Sending, _Stamp]] = []
        self._passing = asyncio.Lock()  # more than one would only make the storage seek
        self._checking = asyncio.Lock()

    async def send(self, file: Sending) -> None:
        """Bring one file there, for certain."""
        before = await self._stamp(file)
        if before.size != file.size:
            raise FileChanged(path=file.path, host=self._host)
        for _ in range(TRIES):
            async with self._passing:
                root = await self._read_all(file, file.size)
            async with self._checking:
                is_same = await self._line.is_same(file.n, root)
            if await self._stamp(file) != before:
                raise FileChanged(path=file.path, host=self._host)
            if is_same:
                self._stamps.append((file, before))
                self._meter.at(file, 1.0)
                return
        raise FileDiffers(volume=file.path.name, host=self._line.host)

    async def require_unchanged(self) -> None:
        """What was sent hours ago is as it was then. Raises FileChanged."""
        for file, before in self._stamps:
            if await self._stamp(file) != before:
                raise FileChanged(path=file.path, host=self._host)

    async def _stamp(self, file: Sending) -> _Stamp:
        found = await self._read(file, file.path.stat)
        return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns)

    async def _read_all(self, file: Sending, size: int) -> str:
        opened: list[int] = []

        def opening() -> None:
            opened.append(os.open(file.path, os.O_RDONLY | os.O_CLOEXEC))

        try:
            await self._read(file, opening)
            return await self._pass(_Open(file, opened[0], size))
        finally:
            for fd in opened:  # also when the caller was cancelled meanwhile
                os.close(fd)

    async def _pass(self, one: _Open) -> str:
        """Send what the target lacks; the root of the file."""
        root, first, end = chunks.Root(one.size), 0, chunks.count(one.size)
        while first < end:
            held = await self._line.held(one.file.n, first, end - first)
            self._sent.wire += len(held)
            root.add(await self._window(one, first, held))
            first += len(held) // DIGEST_BYTES
        return root.text

    async def _window(self, one: _Open, first: int, held: bytes) -> bytes:
        """Make the chunks from `first` on, of which the target holds `held`, the same; their digests."""
        there = [held[i : i + DIGEST_BYTES] for i in range(0, len(held), DIGEST_BYTES)]
        last = first + len(there)
        filled = await self._read(
            one.file, lambda: frozenset(chunks.filled(one.fd, one.size, first, last))
        )
        wanted = [k for k in range(first, last) if k in filled or there[k - first] != HOLE]
        skipped = frozenset(range(first, last)).difference(wanted)
        self._sent.zero += sum(chunks.length(one.size, k) for k in skipped)
        here = [HOLE] * len(there)
        queue = iter(wanted)

        async def work() -> None:
            for k in queue:
                here[k - first] = await self._chunk(one, k, there[k - first])
                self._meter.at(one.file, min((k + 1) * chunks.CHUNK / one.size, NEARLY))

        await _all(work() for _ in range(min(IN_FLIGHT, len(wanted))))
        return b"".join(here)

    async def _chunk(self, one: _Open, k: int, there: bytes) -> bytes:
        """Its digest, when the target has it too."""

        def look() -> _Chunk:
            data = chunks.read(one.fd, one.size, k)
            digest = chunks.digest(data)
            if digest == there:
                return _Chunk(digest)
            blocks, packed = chunks.pack(data)
            return _Chunk(digest, blocks, chunks.squeeze(packed), len(packed))

        chunk = await self._read(one.file, look)
        whole, sent = chunks.length(one.size, k), self._sent
        if chunk.data is not None:
            await self._line.put(one.file.n, k, chunk.blocks, chunk.data)
            sent.sent += chunk.content
            sent.wire += len(chunk.data)
            sent.zero += whole - chunk.content
        elif chunk.digest == HOLE:
            sent.zero += whole
        else:
            sent.present += whole
        return chunk.digest

    async def _read(self, file: Sending, work: Callable[[], T]) -> T:
        """`work` in a thread, which has ended when this returns, whatever happens."""

        async def working() -> T:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

        try:
            return await finish(working())
        except OSError as error:
            raise FileUnreadable(
                path=file.path, host=self._host, reason=error.strerror or str(error)
            ) from error
