"""One VM of this host: its record on disk, its QEMU if it has one, and who may touch it now.

The rule that everything here keeps: a vCPU runs only while the durable record says `owned`, and
`record.process` is durable before it may run, so that a restarted daemon finds every QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sterna.errors import QEMULost, SternaError, VMBusy, VMLost, VMNotFound, VMStartFailed
from sterna.host.store import Store
from sterna.model.cpu import GuestCPU
from sterna.model.vm import OwnershipState, RunState, VMRecord
from sterna.operations.runner import Runner
from sterna.qemu import cpus
from sterna.qemu.argv import RunPaths
from sterna.qemu.blocks import Blocks
from sterna.qemu.commands import Monitor
from sterna.qemu.process import Process
from sterna.qemu.session import Session
from sterna.tasks import finish

log = logging.getLogger(__name__)

# QEMU's words for a guest that stands still and may simply be continued.
_STANDING = frozenset({"prelaunch", "paused", "postmigrate", "finish-migrate"})
SILENT = "silent"  # status of a QEMU that lives but does not answer
QUIT_TIMEOUT_S = 10.0  # QEMU flushes and closes its disks


class VM:
    """Handle of one VM. All changes of its record go through `write`."""

    def __init__(self, record: VMRecord, store: Store[VMRecord], run_dir: Path) -> None:
        self.record = record
        self.process: Process | None = None
        self.monitor: Monitor | None = None
        self.status = ""  # QEMU's run state, kept by its events
        self.exit_status: int | None = None  # of the last QEMU, if it was our child
        self.ended = asyncio.Event()  # set while there is no QEMU
        self.ended.set()
        self.doing = ""  # what holds the lease, in words
        self.operation = ""  # its operation, if it has one
        self.lacks_memory = False  # it runs, and a part of its memory is on another host still
        self.declared = asyncio.Event()  # a human says that the host it was given to is off
        self.paths = RunPaths(run_dir)
        self._store = store
        self._cpu: GuestCPU | None = None  # of this QEMU; it stays as it is
        self._writing = asyncio.Lock()
        self.is_deleted = False  # a late write would bring the record back

    # ---- what it is ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.record.spec.name

    @property
    def id(self) -> str:
        return self.record.spec.id

    @property
    def is_here(self) -> bool:
        """False for the tombstone of a VM that lives elsewhere now."""
        return self.record.ownership.state not in (
            OwnershipState.RELEASED,
            OwnershipState.REFUSED,
        )

    @property
    def state(self) -> RunState:
        match self.record.ownership.state:
            case OwnershipState.YIELDING:
                return RunState.UNKNOWN
            case OwnershipState.RESERVED:
                return RunState.MOVING_IN
        if self.process is None:
            return RunState.STARTING if self.doing == "starting" else RunState.OFF
        if self.status == SILENT:
            return RunState.UNKNOWN
        if self.status == "running":
            return RunState.RUNNING
        return RunState.STARTING if self.doing == "starting" else RunState.PAUSED

    # ---- one at a time ---------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self, doing: str, operation: str = "") -> Iterator[None]:
        """Nobody else changes the VM meanwhile; raises VMBusy if somebody does."""
        if self.doing:
            raise VMBusy(vm=self.name, doing=self.doing, operation=self.operation or "-")
        self.doing, self.operation = doing, operation
        try:
            yield
        finally:
            self.doing, self.operation = "", ""

    async def write(self, **changes: object) -> None:
        """Change the record, durably, before this returns; a cancelled write has been done too."""
        await finish(self._write(changes))

    async def _write(self, changes: dict[str, object]) -> None:
        async with self._writing:  # the watch of its QEMU writes too
            if self.is_deleted:
                raise VMNotFound(vm=self.name, host="this host any more")
            record = replace(self.record, **changes)  # type: ignore[arg-type]
            await self._store.write(self.id, record)
            self.record = record

    async def delete(self) -> None:
        """Remove the record, durably, and the run folder."""
        async with self._writing:  # the watch of its QEMU must not write it anew
            await self._store.delete(self.id)
            self.is_deleted = True
        self.remove_run_dir()

    # ---- its QEMU --------------------------------------------------------------------------

    def remove_run_dir(self) -> None:
        """Sockets and logs of a QEMU that will not be asked for again."""
        shutil.rmtree(self.paths.directory, ignore_errors=True)

    def prepare_run_dir(self) -> None:
        """A fresh run folder; what a former QEMU left there is gone."""
        shutil.rmtree(self.paths.directory, ignore_errors=True)
        self.paths.directory.mkdir(mode=0o700, parents=True)

    async def attach(self, process: Process, runner: Runner) -> None:
        """Connect to `process` and watch it until it ends. Raises QEMULost, QMPTimeout."""
        session = await Session.connect(
            self.name,
            self.paths.control,
            self.paths.oob,
            is_alive=lambda: process.is_alive,
        )
        try:
            status = await Monitor(session).query_status()
        except BaseException:
            await session.close()
            raise
        self.process, self.monitor, self.status = process, Monitor(session), status
        self._cpu = None
        self.ended.clear()
        runner.background(self._watch(process, session), f"watch {self.name}")

    def hold(self, process: Process, runner: Runner) -> None:
        """A QEMU that lives but does not answer: known, so that nobody starts a second one."""
        self.process, self.monitor, self.status = process, None, SILENT
        self.ended.clear()
        runner.background(self._watch(process, None), f"watch {self.name}")

    async def _watch(self, process: Process, session: Session | None) -> None:
        """Follow QEMU's run state; when the process ends, say so in the record."""
        try:
            if session is not None:
                with session.listen("STOP", "RESUME") as events, contextlib.suppress(QEMULost):
                    async for event in events:
                        self.status = "running" if event["event"] == "RESUME" else "paused"
            self.exit_status = await process.wait()
        finally:
            if session is not None:
                await session.close()
        log.info("QEMU of %s (pid %d) has ended", self.name, process.pid)
        self.process, self.monitor, self.status = None, None, ""
        try:
            if self.record.process is not None:
                await self.write(process=None)
        except SternaError as error:  # a stale name harms nobody: start ticks tell it apart
            log.error("end of %s not written: %s", self.name, error)  # noqa: TRY400
        finally:
            self.ended.set()

    @property
    def qmp(self) -> Monitor:
        """The monitor; raises VMLost if there is no QEMU."""
        if self.monitor is None:
            raise VMLost(
                vm=self.name,
                doing=self.doing or "in use",
                reason=self.last_words(),
                log=self.paths.log,
            )
        return self.monitor

    @property
    def blocks(self) -> Blocks:
        """The block commands; raises VMLost if there is no QEMU."""
        return Blocks(self.qmp.session)

    async def processor(self) -> GuestCPU:
        """What its guest sees as a processor. Raises VMLost, QEMULost, QMPTimeout, QMPError."""
        if self._cpu is None:
            self._cpu = await cpus.seen(self.qmp.session)
        return self._cpu

    def last_words(self) -> str:
        """The end of QEMU's log, on one line."""
        try:
            lines = self.paths.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        words = " / ".join(line.strip() for line in lines[-3:]) or "it said nothing"
        if self.process is None and self.exit_status is not None:
            return f"{words} (exit status {self.exit_status})"
        return words

    async def resume_as_recorded(self) -> None:
        """Continue the vCPUs if this host owns the VM and its user did not pause it."""
        if self.record.ownership.state is not OwnershipState.OWNED:
            raise VMStartFailed(vm=self.name, reason="it is not owned here", log=self.paths.log)
        if self.record.saved is not None:  # what it saved must stay true of its disks
            raise VMStartFailed(
                vm=self.name, reason="its saved state was not loaded", log=self.paths.log
            )
        self.status = await self.qmp.query_status()
        if self.status in _STANDING and not self.record.paused:
            await self.qmp.cont()
            self.status = "running"

    async def quit(self) -> None:
        """End QEMU at once, as pulling the plug would; returns when the process is gone."""
        process = self.process
        if process is None:
            return
        with contextlib.suppress(SternaError):
            await self.qmp.quit()
        try:
            async with asyncio.timeout(QUIT_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await self.ended.wait()
