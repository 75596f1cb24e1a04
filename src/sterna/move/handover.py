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
from sterna.errors import HandoverFailed, HostUnreachable, MoveUnknown, SternaError
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
        answer = await peer.take(job.id, epoch)
    except HostUnreachable as error:
        if not error.delivered:
            await _own_again(vm)
            raise HandoverFailed(reason=error.message) from error
    except SternaError:
        pass  # an answer, but not a plain one: ask until it is
    else:
        return await _conclude(vm, peer, answer)
    return await resolve(vm, peer, job)


async def resolve(vm: VM, peer: Peer, job: Job) -> ReservationStatus:
    """End the doubt about a VM in `yielding`: ask its target until it answers.

    The same outcome as `give`. `take` is repeated, it means the same the second time; a target that
    has restarted since has durably refused and says so.
    """
    epoch = vm.record.ownership.epoch
    silent_since, pause = clock.monotonic(), RETRY_S
    while True:
        try:
            answer = await peer.take(job.id, epoch)
        except SternaError as error:
            if clock.monotonic() - silent_since > DOUBT_AFTER_S:
                job.unknown(MoveUnknown(vm=vm.name, target=peer.name, operation=job.id))
            job.log(f"asking {peer.name} who owns {vm.name}: {error.message}", level="warning")
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX_S)
        else:
            job.known()
            return await _conclude(vm, peer, answer)


async def _conclude(vm: VM, peer: Peer, answer: ReservationStatus) -> ReservationStatus:
    if answer.state is OwnershipState.OWNED:
        return answer
    await _own_again(vm)
    raise HandoverFailed(reason=f"{peer.name} refused the VM: {answer.reason}")


async def _own_again(vm: VM) -> None:
    ownership = vm.record.ownership
    await vm.write(
        ownership=replace(ownership, state=OwnershipState.OWNED, epoch=ownership.epoch - 1)
    )


async def release(vm: VM) -> None:
    """The target owns the VM: write it down, then end our QEMU."""
    await vm.write(ownership=replace(vm.record.ownership, state=OwnershipState.RELEASED), moving="")
    await vm.quit()
