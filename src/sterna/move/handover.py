"""The handover on the source: the few lines after which another host owns the VM.

    owned(n) --write--> yielding(n+1) --take--> answer owned   --> released(n+1)
                                          |     answer refused --> owned(n), continue here
                                          +---- silence: doubt. Ask again, for ever, paused.

`yielding` is durable before `take` is sent, so nobody but the target can run the VM from then on
unless the target has durably refused, or `take` has certainly never left this host.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from sterna import clock
from sterna.errors import HandoverFailed, HostUnreachable, MoveUnknown, StateNotWritten
from sterna.model.reservation import ReservationStatus
from sterna.model.vm import Ownership, OwnershipState
from sterna.move.peer import Peer
from sterna.operations.runner import Job
from sterna.vms.machine import VM

DOUBT_AFTER_S = 3.0  # of silence the operation says "unknown"
RETRY_S = 0.25  # first; doubles up to RETRY_MAX_S
RETRY_MAX_S = 5.0


async def give(vm: VM, peer: Peer, job: Job) -> ReservationStatus:
    """Yield the VM to `peer` and return its answer, once it owns the VM.

    Raises HandoverFailed when the VM is owned here again, for certain and durably. Waits as long as
    the outcome is in doubt.
    """
    epoch = vm.record.ownership.epoch + 1
    await vm.write(
        ownership=Ownership(
            state=OwnershipState.YIELDING, epoch=epoch, operation=job.id, peer=peer.name
        )
    )
    try:
        answer = await peer.take(job.id, vm.id, epoch)
    except HostUnreachable as error:
        if not error.delivered:
            await _own_again(vm, job)
            raise HandoverFailed(reason=error.message) from error
    except Exception as error:  # noqa: BLE001 - no plain answer: ask until there is one
        job.log(f"{peer.name} was told, but did not answer plainly: {error}", level="warning")
    else:
        return await _conclude(vm, peer, answer, job)
    return await resolve(vm, peer, job)


async def resolve(vm: VM, peer: Peer, job: Job) -> ReservationStatus:
    """End the doubt about a VM in `yielding`: ask its target until it answers.

    The same outcome as `give`. `take` is repeated, it means the same the second time; a target that
    has restarted since has durably refused and says so.
    """
    epoch = vm.record.ownership.epoch
    silent_since, pause, told, is_told = clock.monotonic(), RETRY_S, "", False
    while True:
        try:
            answer = await peer.take(job.id, vm.id, epoch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            if clock.monotonic() - silent_since > DOUBT_AFTER_S and not is_told:
                job.unknown(MoveUnknown(vm=vm.name, target=peer.name, operation=job.id))
                is_told = True
            if str(error) != told:
                told = str(error)
                job.log(f"asking {peer.name} who owns {vm.name}: {told}", level="warning")
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX_S)
        else:
            job.known()
            return await _conclude(vm, peer, answer, job)


async def _conclude(vm: VM, peer: Peer, answer: ReservationStatus, job: Job) -> ReservationStatus:
    if answer.state is OwnershipState.OWNED:
        return answer
    await _own_again(vm, job)
    raise HandoverFailed(reason=f"{peer.name} refused the VM: {answer.reason}")


async def _own_again(vm: VM, job: Job) -> None:
    ownership = vm.record.ownership
    owned = replace(ownership, state=OwnershipState.OWNED, epoch=ownership.epoch - 1)
    await _surely(vm, job, ownership=owned)


async def _surely(vm: VM, job: Job, **changes: object) -> None:
    """A change that is decided elsewhere already: it is tried until the disk takes it."""
    while True:
        try:
            return await vm.write(**changes)
        except StateNotWritten as error:
            job.log(error.message, level="warning")
            await asyncio.sleep(RETRY_MAX_S)


async def release(vm: VM, job: Job) -> None:
    """The target owns the VM: write it down, then end our QEMU."""
    released = replace(vm.record.ownership, state=OwnershipState.RELEASED)
    await _surely(vm, job, ownership=released, moving="")
    await vm.quit()
