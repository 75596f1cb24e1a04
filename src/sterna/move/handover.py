"""The handover on the source: the few lines after which another host owns the VM.

    owned(n) --write--> yielding(n+1) --take--> answer owned   --> released(n+1)
                                          |     answer refused --> owned(n), continue here
                                          +---- silence: doubt. Ask again, for ever, paused.

What is written is decided by `protocol`; here are the effects. `yielding` is durable before `take` is sent, so nobody but the target can run the VM from then on
unless the target has durably refused, or `take` has certainly never left this host.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from sterna import clock
from sterna.errors import (
    Fenced,
    HandoverFailed,
    HostUnknown,
    HostUnreachable,
    MoveUnknown,
    StateNotWritten,
    VMNotOwned,
)
from sterna.host.registry import Pools
from sterna.model.reservation import ReservationStatus
from sterna.model.vm import OwnershipState
from sterna.move import postcopy, protocol, untouched
from sterna.move.peer import Peer
from sterna.operations.runner import Job
from sterna.vms.machine import VM

DOUBT_AFTER_S = 3.0  # of silence the operation says "unknown"
RETRY_S = 0.25  # first; doubles up to RETRY_MAX_S
RETRY_MAX_S = 5.0


async def give(vm: VM, peer: Peer, job: Job, pools: Pools) -> ReservationStatus:
    """Yield the VM to `peer` and return its answer, once it owns the VM.

    Raises HandoverFailed when the VM is owned here again, for certain and durably. Waits as long as
    the outcome is in doubt.
    """
    yielding = protocol.source_yield(protocol.standing(vm.record), job.id, peer.name)
    if yielding is None:
        raise _not_ours(vm)
    vm.declared.clear()  # of an earlier doubt, that its target ended in the same moment
    stamps = await untouched.stamps(vm.record, pools, untouched.QUICK_S)
    await vm.write(**protocol.fields(yielding), stamps=stamps)
    try:
        answer = await peer.take(job.id, vm.id, yielding.epoch)
    except HostUnreachable as error:
        if not error.delivered:
            now = protocol.standing(vm.record)
            await _surely(vm, job, protocol.source_undelivered(now, asked_before=False))
            raise HandoverFailed(reason=error.message) from error
    except Exception as error:  # noqa: BLE001 - no plain answer: ask until there is one
        job.log(f"{peer.name} was told, but did not answer plainly: {error}", level="warning")
    else:
        return await _conclude(vm, yielding.epoch, answer, job)
    return await resolve(vm, lambda: peer, job, pools)


async def resolve(vm: VM, find: Callable[[], Peer], job: Job, pools: Pools) -> ReservationStatus:
    """End the doubt about a VM in `yielding`: ask its target until it answers.

    The same outcome as `give`. `take` is repeated, it means the same the second time; a target that
    has restarted since has durably refused and says so. `find` is asked each time: the target may
    be missing from the configuration.
    """
    epoch, target = vm.record.ownership.epoch, vm.record.ownership.peer
    silent_since, pause, told, is_told = clock.monotonic(), RETRY_S, "", False
    while True:
        try:
            answer = await find().take(job.id, vm.id, epoch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            is_unknown = isinstance(error, HostUnknown)  # only a new configuration can end that
            if (is_unknown or clock.monotonic() - silent_since > DOUBT_AFTER_S) and not is_told:
                job.unknown(MoveUnknown(vm=vm.name, target=target, operation=job.id))
                is_told = True
            if str(error) != told:
                told = str(error)
                job.log(f"asking {target} who owns {vm.name}: {told}", level="warning")
            await _until_declared(vm, pause)
            pause = min(pause * 2, RETRY_MAX_S)
            _still_asking(vm, epoch)
            if vm.declared.is_set():
                await _fence(vm, job, pools)
        else:
            job.known()
            return await _conclude(vm, epoch, answer, job)


async def _until_declared(vm: VM, pause: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause):
            await vm.declared.wait()


async def _fence(vm: VM, job: Job, pools: Pools) -> None:
    """A human says that the target is off: own the VM again, above all that was given away.

    Raises Fenced once that is durable; returns to ask on if it could not be written. A guest that
    might be older than its disks is ended before anybody can continue it.
    """
    target, now = vm.record.ownership.peer, protocol.standing(vm.record)
    vm.declared.clear()
    new = protocol.fence(now)
    if new is None:
        raise _not_ours(vm)
    goes_on = (
        vm.process is not None
        and not await postcopy.sends(vm)
        and await untouched.is_untouched(vm.record, pools)
    )
    if not goes_on:  # first, so that no restart can find it owned and continue it
        await vm.quit()
    note = f"{clock.now()} taken back from {target} in epoch {new.epoch}: it was declared to be off"
    try:
        await vm.write(**protocol.fields(new), notes=(*vm.record.notes[-9:], note))
    except StateNotWritten as error:
        job.log(f"{error.message}: not taken back", level="error")
        return
    job.known()
    raise Fenced(
        vm=vm.name,
        target=target,
        epoch=new.epoch,
        state="goes on where it was paused"
        if goes_on
        else "is off: its memory here may be older than its disks, so it must boot",
    )


def _still_asking(vm: VM, epoch: int) -> None:
    now = vm.record.ownership
    if (now.state, now.epoch) != (OwnershipState.YIELDING, epoch):
        raise _not_ours(vm)


async def _conclude(vm: VM, epoch: int, answer: ReservationStatus, job: Job) -> ReservationStatus:
    """What the answer means is written by `release`, after the figures of the move were read."""
    target = vm.record.ownership.peer
    now = protocol.standing(vm.record)
    new = protocol.source_answer(now, job.id, epoch, answer.state)
    if new.state is OwnershipState.RELEASED:
        return answer
    if new.state is not OwnershipState.OWNED or new == now:
        raise _not_ours(vm)
    await _surely(vm, job, new)
    raise HandoverFailed(reason=f"{target} refused the VM: {answer.reason}")


def _not_ours(vm: VM) -> VMNotOwned:
    return VMNotOwned(
        vm=vm.name,
        host="this host",
        reason=f"its record says {vm.record.ownership.state} since, by another's decision",
        fix="See its notes: sterna vm show",
    )


async def _surely(vm: VM, job: Job, new: protocol.Standing) -> None:
    """A change that is decided elsewhere already: it is tried until the disk takes it."""
    while True:
        try:
            return await vm.write(**protocol.fields(new))
        except StateNotWritten as error:
            job.log(error.message, level="warning")
            await asyncio.sleep(RETRY_MAX_S)


async def release(vm: VM, job: Job) -> None:
    """The target owns the VM: write it down. May be repeated."""
    if vm.record.ownership.state is not OwnershipState.RELEASED:
        await _surely(vm, job, protocol.release(protocol.standing(vm.record)))


def fenced_report(host: str, error: Fenced) -> dict[str, str]:
    """The result of a move that was ended so."""
    return {"from": host, "to": host, "text": error.message}
