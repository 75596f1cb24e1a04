"""Going on from a saved state: memory and devices from a file, into a fresh QEMU.

Rule of the record: while it names a saved state, the guest has not run since that was made, and no
QEMU of the VM may run a vCPU. So the name is cleared, durably, before the vCPUs run, and a QEMU
that is found beside it is ended. The file goes after that; one that belongs to a checkpoint stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from sterna.errors import (
    NotSaved,
    PoolNotFound,
    QEMULost,
    QMPError,
    QMPTimeout,
    RestoreFailed,
    SavedStateDamaged,
    SavedStateForeign,
    SternaError,
    VMStartFailed,
)
from sterna.model.disk import StateFile, Volume
from sterna.model.vm import VMSpec
from sterna.tasks import finish
from sterna.vms.kept import Kept
from sterna.vms.launch import Launcher
from sterna.vms.machine import VM
from sterna.vms.mend import clear_files

CAPABILITIES = {"events": True, "late-block-activate": True}
FD = "state"  # what QEMU calls the file
POLL_S = 0.05
LOAD_MIN_S = 60.0
LOAD_BYTES_S = 20 << 20  # slower than any disk that works


def digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file. Raises OSError; blocks."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, found


async def damage(state: StateFile, launcher: Launcher) -> tuple[Path | str, str]:
    """Where `state` is, and what is wrong with it; empty: nothing. Reads all of it."""
    try:
        path = launcher.pools.volume_path(state.pool, state.volume)
    except PoolNotFound as error:
        return str(state.place), error.message
    try:
        size, found = await asyncio.to_thread(digest, path)
    except OSError as error:
        return path, error.strerror or str(error)
    if size != state.size:
        return path, f"it has {size} bytes instead of {state.size}"
    if found != state.sha256:
        return path, "its content is not what was written"
    return path, ""


def other_machine(state: StateFile, spec: VMSpec) -> str:
    """What the VM is now, if the memory was made by another machine; empty: it fits."""
    is_same = state.machine in ("", spec.machine) and state.cpu in ("", spec.processor.text)
    return "" if is_same else f"{spec.machine} {spec.processor.text}"


async def require_sound(vm: VM, launcher: Launcher) -> StateFile:
    """The saved state, which can be gone on from. Raises SavedStateForeign, SavedStateDamaged."""
    state = vm.record.saved
    if state is None:
        raise NotSaved(vm=vm.name)
    if state.accel != launcher.accel:
        raise SavedStateForeign(
            what="the saved state",
            vm=vm.name,
            made=state.accel,
            here=launcher.accel,
            host=launcher.host,
            fix=f"or throw it away: sterna vm discard {vm.name}",
        )
    path, reason = await damage(state, launcher)
    if reason:
        raise SavedStateDamaged(vm=vm.name, path=path, reason=reason)
    return state


async def go_on(vm: VM, launcher: Launcher, kept: Kept, *, is_sound: bool = False) -> None:
    """From the saved state to a guest that runs, or is paused as it was.

    With `is_sound` the caller has just looked at the file. Raises NotSaved, SavedStateDamaged,
    SavedStateForeign, VMStartFailed, RestoreFailed: then it is off and still saved. Cancelled while
    it is loaded: the same; later, it goes on all the same.
    """
    state = vm.record.saved
    if state is None or not is_sound:
        state = await require_sound(vm, launcher)
    await launcher.launch(vm, incoming=True)
    before = vm.record
    try:
        await _load(vm, launcher, state)
        with contextlib.suppress(asyncio.CancelledError):  # too late: its guest runs
            await finish(_let_go(vm))
    except BaseException as error:
        await vm.quit()
        if isinstance(error, QMPError) and vm.record.saved is None:
            await vm.write(saved=state, leaving=before.leaving)  # it said no: nothing has run
        if isinstance(error, (QEMULost, QMPError, QMPTimeout, TimeoutError)):
            raise _failed(vm) from error
        raise
    with contextlib.suppress(SternaError):  # switches learn of it from its traffic too
        await vm.qmp.announce_self()
    await clear_quietly(vm, launcher, kept)


async def _let_go(vm: VM) -> None:
    """Not to be torn apart: a VM that is neither saved nor running would have lost its memory."""
    await vm.write(saved=None, leaving=(*vm.record.leaving, *leaving_state(vm)))
    await vm.resume_as_recorded()


def _failed(vm: VM) -> SternaError:
    if vm.record.saved is not None:
        return RestoreFailed(vm=vm.name, reason=vm.last_words())
    return VMStartFailed(vm=vm.name, reason=vm.last_words(), log=vm.paths.log)


def leaving_state(vm: VM) -> tuple[Volume, ...]:
    """The file of the saved state, unless a checkpoint needs it."""
    state = vm.record.saved
    if state is None:
        return ()
    needed = {one.memory.place for one in vm.record.checkpoints if one.memory is not None}
    return () if state.place in needed else (state.place,)


async def _load(vm: VM, launcher: Launcher, state: StateFile) -> None:
    qmp = vm.qmp
    await qmp.migrate_set_capabilities(CAPABILITIES)
    path = launcher.pools.volume_path(state.pool, state.volume)
    fd = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await qmp.give_fd(FD, fd)
    finally:
        os.close(fd)
    await qmp.migrate_incoming(f"fd:{FD}")
    async with asyncio.timeout(LOAD_MIN_S + state.size / LOAD_BYTES_S):
        while (info := await qmp.query_migrate()).status != "completed":
            if info.status == "failed":
                raise QEMULost(name=vm.name, reason=info.error_desc or "it could not load it")
            await asyncio.sleep(POLL_S)


async def clear_quietly(
    vm: VM, launcher: Launcher, kept: Kept, log: Callable[[str], object] | None = None
) -> None:
    """Remove what the record says is to go; what cannot be now is tried again at the next start."""
    try:
        used = await vm.blocks.names() if vm.monitor is not None else frozenset()
        await clear_files(vm, launcher.pools, kept, used)
    except SternaError as error:
        if log is not None:
            log(f"files of {vm.name} could not be removed yet: {error.message}")


async def discard(vm: VM, launcher: Launcher, kept: Kept) -> None:
    """Throw the saved state away; its file may be damaged or gone."""
    left = leaving_state(vm)
    await vm.write(saved=None, leaving=(*vm.record.leaving, *left))
    await clear_quietly(vm, launcher, kept)
