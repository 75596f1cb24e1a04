"""Ownership as a state machine: pure functions from what a host durably knows to what it must write.

Each function answers with the standing that has to be on disk BEFORE the effect that it allows (a
vCPU runs, a message leaves, a QEMU ends). None of them does anything itself: `handover`,
`incoming`, `recovery` and `resolve` call them and have the effects, and tests/model/explore.py
calls the same ones under every order of crashes, losses and repetitions that its bounds allow.

    source:  owned(n) --yield--> yielding(n+1) --answer owned-----> released(n+1)
                                               --answer refused---> owned(n)
                                               --fenced by a human-> owned(n+2), and tells the target
    target:  reserved(n+1) --take--> owned(n+1)
                           --anything else--> refused(n+1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from sterna.model.vm import Fence, Ownership, OwnershipState, VMRecord

OWNED, YIELDING, RELEASED = (
    OwnershipState.OWNED,
    OwnershipState.YIELDING,
    OwnershipState.RELEASED,
)
RESERVED, REFUSED = OwnershipState.RESERVED, OwnershipState.REFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one host durably knows of the ownership of one VM: that part of its record."""

    ownership: Ownership
    moving: str = ""  # operation that is moving it away; set before the target hears of it
    owned_epoch: int = 0  # newest epoch that this host took over
    fenced: tuple[Fence, ...] = ()  # hosts that must still be told that they own it no more

    @property
    def state(self) -> OwnershipState:
        return self.ownership.state

    @property
    def epoch(self) -> int:
        return self.ownership.epoch


class Taken(NamedTuple):
    """What a target writes, and what it answers once that is written."""

    standing: Standing | None
    answer: OwnershipState


def standing(record: VMRecord) -> Standing:
    """The part of `record` that is decided here."""
    return Standing(
        ownership=record.ownership,
        moving=record.moving,
        owned_epoch=record.owned_epoch,
        fenced=record.fenced,
    )


def fields(new: Standing) -> dict[str, object]:
    """For `VM.write`."""
    return {
        "ownership": new.ownership,
        "moving": new.moving,
        "owned_epoch": new.owned_epoch,
        "fenced": new.fenced,
    }


def may_run(now: Standing | None) -> bool:
    """Whether vCPUs may run on this host."""
    return now is not None and now.state is OWNED


def remembers(now: Standing) -> bool:
    """Whether the record of a VM that is not here must stay: somebody may ask, or must be told."""
    return now.owned_epoch > 0 or bool(now.fenced)


# ---- the source ------------------------------------------------------------------------------


def begin(now: Standing, operation: str) -> Standing:
    """Before the target is asked for anything."""
    return replace(now, moving=operation)


def give_up(now: Standing) -> Standing:
    """The move is over, and the VM was never yielded, or is owned here again."""
    return replace(now, moving="")


def source_yield(now: Standing, operation: str, peer: str) -> Standing | None:
    """Before `take` is sent. None: the VM is not this host's to give (any more)."""
    if now.state is not OWNED:
        return None
    return replace(
        now,
        ownership=Ownership(state=YIELDING, epoch=now.epoch + 1, operation=operation, peer=peer),
    )


def source_answer(now: Standing, operation: str, epoch: int, answer: OwnershipState) -> Standing:
    """What the target's answer to `take` means. Anything but the answer that is awaited: nothing."""
    awaited = now.state is YIELDING and (now.ownership.operation, now.epoch) == (operation, epoch)
    if not awaited or answer not in (OWNED, REFUSED):
        return now
    return release(now) if answer is OWNED else _own_again(now)


def source_undelivered(now: Standing, *, asked_before: bool) -> Standing:
    """`take` has certainly not reached the target: only the first of all can prove anything."""
    return now if asked_before or now.state is not YIELDING else _own_again(now)


def release(now: Standing) -> Standing:
    """The target owns it: written before our QEMU is ended and our files are removed."""
    return replace(now, ownership=replace(now.ownership, state=RELEASED), moving="")


def _own_again(now: Standing) -> Standing:
    return replace(now, ownership=replace(now.ownership, state=OWNED, epoch=now.epoch - 1))


# ---- the target ------------------------------------------------------------------------------


def admits(known: Standing | None, epoch: int) -> bool:
    """Whether a reservation of `epoch` may be made over what is known here of that VM."""
    if known is None:
        return True
    return known.state in (RELEASED, REFUSED) and epoch > known.owned_epoch


def on_reserve(known: Standing | None, operation: str, epoch: int, source: str) -> Standing:
    """Before anything is made for it; after `admits`."""
    return Standing(
        ownership=Ownership(state=RESERVED, epoch=epoch, operation=operation, peer=source),
        owned_epoch=known.owned_epoch if known else 0,
        fenced=known.fenced if known else (),
    )


def on_take(now: Standing | None, operation: str, epoch: int, *, is_whole: bool) -> Taken:
    """`take` has arrived. `is_whole`: this daemon made the reservation itself, has not decided it,
    and all of the VM is here. Asked again, it answers the same again.
    """
    if now is None or now.state is not RESERVED or now.ownership.operation != operation:
        return Taken(now, late_answer(now, epoch))
    if not is_whole or now.epoch != epoch:
        return Taken(refuse(now), REFUSED)
    owned = replace(now, ownership=replace(now.ownership, state=OWNED), owned_epoch=epoch)
    return Taken(owned, OWNED)


def late_answer(now: Standing | None, epoch: int) -> OwnershipState:
    """To a question about a reservation that nobody remembers. Epoch n+1 is handed out by the owner
    of n alone, and to the next host only after the one before has refused: a host that has taken
    over n+1 or a later one got it so, whatever has happened to the VM since.
    """
    return OWNED if now is not None and now.owned_epoch >= epoch else REFUSED


def refuse(now: Standing) -> Standing:
    """Before a refusal is told, and before what was made for the VM is removed."""
    if now.state is not RESERVED:
        return now
    return replace(now, ownership=replace(now.ownership, state=REFUSED))


def not_run(now: Standing, owned_before: int) -> Standing:
    """It was written as taken, was not told so yet, and its vCPUs have certainly not run."""
    return replace(now, ownership=replace(now.ownership, state=REFUSED), owned_epoch=owned_before)


# ---- both, when a daemon starts --------------------------------------------------------------


def on_restart(now: Standing) -> Standing:
    """A reservation whose waiting daemon died is refused; a move that had not yielded is over."""
    if now.state is RESERVED:
        return refuse(now)
    return give_up(now) if now.state is OWNED else now


# ---- fencing ---------------------------------------------------------------------------------


def blocks_fence(seen: OwnershipState | None, seen_epoch: int, given: int) -> bool:
    """Whether what a third host knows of the VM says that it went on from the host that is to be
    fenced, which was given epoch `given`: then taking it back would make a second owner.
    """
    return seen not in (None, REFUSED) and seen_epoch > given


def fence(now: Standing) -> Standing | None:
    """A human declares that the target is off and stays off until it has been told. The epoch is
    above all that was given away. None: it is not in doubt (any more).
    """
    if now.state is not YIELDING:
        return None
    told = Fence(peer=now.ownership.peer, epoch=now.epoch)
    epoch = now.epoch + 1
    return replace(
        now,
        ownership=replace(now.ownership, state=OWNED, epoch=epoch),
        owned_epoch=epoch,
        fenced=(*(one for one in now.fenced if one.peer != told.peer), told),
    )


def on_fenced(now: Standing | None, epoch: int) -> Standing | None:
    """This host's ownership up to `epoch` was taken back while it was down. Written before its QEMU
    is ended and before it answers.
    """
    if now is None:
        return None
    held = now.epoch - 1 if now.state is YIELDING else now.epoch
    if held > epoch:
        return now
    if now.state in (OWNED, YIELDING):
        return replace(now, ownership=replace(now.ownership, state=RELEASED), moving="")
    return refuse(now)


def on_told(now: Standing, peer: str, epoch: int) -> Standing:
    """`peer` has written down that it does not own that epoch."""
    return replace(now, fenced=tuple(one for one in now.fenced if one != Fence(peer, epoch)))
