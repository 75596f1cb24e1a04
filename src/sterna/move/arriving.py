"""The files of one reservation as they arrive on the target.

Promises: a file gets its name only by `place`, after all files of the reservation have been read
back and found to be what the source sent; a template that is here already is compared, never
written; after `close` no thread works on any of them. The parts of a VM that is off, or of a move
that says so, stay after a failure, for the next try to go on with. What a kept copy of the same file
holds need not be sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sterna.errors import (
    BadSpec,
    BaseDiffers,
    Failed,
    FileClosed,
    MediumDiffers,
    Refused,
    SternaError,
    VolumeExists,
)
from sterna.host.parts import Part, Parts, Stopped
from sterna.model.disk import Volume
from sterna.model.reservation import FileCheck, FileOffer, Reservation
from sterna.model.vm import VMSpec
from sterna.vms.kept import Kept
from sterna.vms.machine import VM

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_S = 1.0  # the source asks again while a file is being read back
CLOSE_S = 30.0  # for a chunk under way to be written; then its storage hangs


@dataclass(slots=True)
class _File:
    offer: FileOffer
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # to open it
    part: Part | None = None  # once it was asked for
    using: int = 0  # threads
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    check: FileCheck | None = None  # None: it takes data
    checking: asyncio.Future[str] | None = None
    root: str = ""  # that it was compared with


class ArrivingFiles:
    """All files of `reservation`; `n` is their index there."""

    def __init__(self, vm: VM, reservation: Reservation, parts: Parts, kept: Kept) -> None:
        self._vm = vm
        self._parts = parts
        self._kept = kept
        self._is_lasting = reservation.is_resumable
        self._owner = owner(vm.id, is_lasting=self._is_lasting)
        self._files = [_File(offer) for offer in reservation.files]
        self._is_closed = False
        self._is_placed = False
        for file in self._files:
            file.idle.set()

    # ---- what the source asks --------------------------------------------------------------

    async def digests(self, n: int, first: int) -> bytes:
        """What is here of file `n`, from chunk `first` on: 32 bytes each, as many as came at once.

        Raises BadSpec, BaseDiffers, FileNotStored.
        """
        file = self._file(n)
        if first < 0:
            raise BadSpec(where=f"file {n}", reason=f"it has no chunk {first}")

        def look(part: Part) -> bytes:  # one that comes late changes nothing any more
            return part.digests(first, may_borrow=file.check is None)

        return await self._use(file, look)

    async def put(self, n: int, chunk: int, blocks: int, data: bytes) -> None:
        """Store one chunk. Raises BadSpec, BaseDiffers, FileClosed, FileNotStored."""
        file = self._file(n)

        def store(part: Part) -> None:
            if not part.is_writable:
                raise self._other_base(file)
            try:
                part.store(chunk, blocks, data)
            except ValueError as error:
                raise BadSpec(where=f"file {n}", reason=str(error)) from error

        await self._use(file, store, writes=True)

    async def finish(self, n: int, root: str) -> FileCheck:
        """Read the file back and compare its root; the answer may be "checking": ask again."""
        file = self._file(n)
        part = await self._open(file)
        if file.check is None or (file.check.state == "same" and file.root != root):
            file.check = FileCheck(state="checking")
        file.root = root
        if file.check.state == "checking":
            await file.idle.wait()  # chunks under way; no others are let in
            await self._look(file, part)
        if file.check is not None:
            return file.check
        if not part.is_writable:
            raise self._other_base(file)
        return FileCheck(state="differs", checked=file.offer.size)

    # ---- what the reservation asks ---------------------------------------------------------

    async def place(self) -> None:
        """Give all files their names, durably. May be repeated.

        Raises Failed if one has not arrived, VolumeExists, FileNotStored, StateNotWritten.
        """
        if self._is_placed:
            return
        for file in self._files:
            if file.check is None or file.check.state != "same":
                raise Failed(detail=f"{file.offer.place} has not arrived")
        for file in self._files:
            part = file.part
            if part is None:
                continue
            if part.is_writable:
                await self._place(file, part)
            self._parts.release(part)
            file.part = None
        self._is_placed = True
        await self._remove_parts()

    async def close(self) -> None:
        """Nobody writes from here on; parts stay or go as the move's kind says. May be repeated."""
        self._is_closed = True
        for file in self._files:
            try:
                async with asyncio.timeout(CLOSE_S):
                    async with file.lock:  # it may be about to be opened
                        await file.idle.wait()
                    if file.checking is not None:
                        await asyncio.wait([file.checking])
                        file.checking.exception()
            except TimeoutError:
                log.error("%s: its storage hangs", file.offer.place)  # noqa: TRY400
                continue  # what a thread may still write to is never closed
            if file.part is not None:
                self._parts.release(file.part)
                file.part = None
        if not self._is_lasting:
            try:
                await self._remove_parts()
            except SternaError as error:
                log.warning("parts of %s stay for a day: %s", self._vm.name, error)

    # ---- how -------------------------------------------------------------------------------

    def _file(self, n: int) -> _File:
        if not 0 <= n < len(self._files):
            raise BadSpec(where="files", reason=f"the reservation has no file {n}")
        return self._files[n]

    async def _open(self, file: _File) -> Part:
        async with file.lock:
            if self._is_closed or self._is_placed:
                raise FileClosed(volume=file.offer.place, host=self._parts.host)
            if file.part is not None:
                return file.part

            def opening() -> Part:
                file.part = self._opened(file.offer)  # known even if the caller is cancelled
                return file.part

            return await self._parts.run(opening)

    def _opened(self, offer: FileOffer) -> Part:
        """In a thread."""
        if offer.is_base and (part := self._parts.existing(offer.place)) is not None:
            if part.size == offer.size:
                return part
            part.close()
            raise other_base(self._vm.record.spec, offer.place, self._parts.host)
        like = None if offer.is_base else self._kept.copy_of(self._vm.id, offer.place)
        return self._parts.open(self._owner, offer.place, offer.size, like)

    async def _use(self, file: _File, work: Callable[[Part], T], *, writes: bool = False) -> T:
        part = await self._open(file)
        if self._is_closed or (writes and file.check is not None):
            raise FileClosed(volume=file.offer.place, host=self._parts.host)
        file.using += 1
        file.idle.clear()

        def working() -> T:
            with self._parts.storing(file.offer.place):
                return work(part)

        try:
            return await self._parts.run(working)
        finally:
            file.using -= 1
            if not file.using:
                file.idle.set()

    async def _look(self, file: _File, part: Part) -> None:
        """Go on reading the file back, for a moment."""
        if self._is_closed:
            raise FileClosed(volume=file.offer.place, host=self._parts.host)
        if file.checking is None:
            file.checking = self._parts.check(lambda: self._read_back(file, part))
        checking = file.checking
        await asyncio.wait([checking], timeout=ANSWER_S)
        if not checking.done() or file.checking is not checking:
            return  # or somebody else who asked has seen it end
        file.check = file.checking = None  # if it failed or differs, the source may send again
        if checking.result() == file.root:
            file.check = FileCheck(state="same", checked=file.offer.size)

    def _read_back(self, file: _File, part: Part) -> str:
        """In a thread."""

        def tell(checked: int) -> bool:
            file.check = FileCheck(state="checking", checked=checked)
            return not (self._is_closed or self._parts.is_closing)

        with self._parts.storing(file.offer.place):
            try:
                return part.root(tell)
            except Stopped:
                return ""

    async def _place(self, file: _File, part: Part) -> None:
        """What has come here by another way meanwhile is somebody else's: no undo removes it. A
        template may have; then that one must be the same.
        """
        place, vm = file.offer.place, self._vm
        if file.offer.is_base:
            await vm.write(made=tuple(dict.fromkeys((*vm.record.made, place))))
        try:
            await self._parts.run(lambda: self._parts.place(part, place))
        except VolumeExists as error:
            await vm.write(made=tuple(one for one in vm.record.made if one != place))
            if not file.offer.is_base:
                raise
            if await self._parts.run(lambda: self._root_of(place)) != file.root:
                raise self._other_base(file) from error

    def _root_of(self, place: Volume) -> str:
        part = self._parts.existing(place)
        if part is None:
            return ""
        try:
            with self._parts.storing(place):
                return part.root(lambda _: not self._parts.is_closing)
        except Stopped:
            return ""
        finally:
            part.close()

    def _other_base(self, file: _File) -> Refused:
        return other_base(self._vm.record.spec, file.offer.place, self._parts.host)

    async def _remove_parts(self) -> None:
        pools = {file.offer.place.pool for file in self._files}
        await self._parts.run(lambda: self._parts.remove(self._owner, pools))


def other_base(spec: VMSpec, place: Volume, host: str) -> Refused:
    """A file of that name is here, and it is not the template or the CD of the VM."""
    drive = next((cd.name for cd in spec.cds if cd.medium == place), "")
    if drive:
        return MediumDiffers(volume=place, host=host, vm=spec.name, drive=drive)
    return BaseDiffers(volume=place, host=host, vm=spec.name)


def owner(vm_id: str, *, is_lasting: bool) -> str:
    """Whose parts they are: those of most live moves are of no use after them."""
    return vm_id if is_lasting else f"live-{vm_id}"
