"""The tree of a VM's checkpoints, and how each step changes its record. Pure functions.

An image rests on another if it is the next above it in the chain of some checkpoint or of the VM
itself. An image on which exactly one other rests can be merged with that one; one on which nothing
rests can go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sterna.errors import CheckpointExists, CheckpointNotFound
from sterna.model.disk import Checkpoint, Image, Volume
from sterna.model.vm import Disk, VMRecord
from sterna.vms.chain import line

Changes = dict[str, Any]  # of a VMRecord


def visible(record: VMRecord) -> tuple[Checkpoint, ...]:
    """Those that were not deleted by their user."""
    return tuple(one for one in record.checkpoints if not one.hidden)


def find(record: VMRecord, name: str, *, hidden_too: bool = False) -> Checkpoint:
    """The checkpoint of that name or id. Raises CheckpointNotFound."""
    shown = [one for one in visible(record) if name in (one.name, one.id)]
    rest = [one for one in record.checkpoints if one.hidden and name in (one.name, one.id)]
    found = shown + (rest if hidden_too else [])
    if not found:
        raise CheckpointNotFound(vm=record.spec.name, checkpoint=name)
    return found[0]


def require_free(record: VMRecord, name: str) -> None:
    """Raises CheckpointExists if the name is taken."""
    if any(name in (one.name, one.id) for one in visible(record)):
        raise CheckpointExists(vm=record.spec.name, checkpoint=name)


def shown_parent(record: VMRecord, checkpoint: str) -> Checkpoint | None:
    """The nearest of that id and those before it which is still shown."""
    return next((one for one in line(record, checkpoint) if not one.hidden), None)


def children(record: VMRecord, checkpoint: str) -> tuple[Checkpoint, ...]:
    """The checkpoints made next after that one."""
    return tuple(one for one in record.checkpoints if one.parent == checkpoint)


def resting(record: VMRecord, checkpoint: str) -> int:
    """How many branches go on from there, that of now included."""
    return len(children(record, checkpoint)) + (record.at == checkpoint)


def subtree(record: VMRecord, checkpoint: str) -> tuple[str, ...]:
    """Ids of the checkpoint and of all that were made after it."""
    below = [one for kid in children(record, checkpoint) for one in subtree(record, kid.id)]
    return (checkpoint, *below)


def writable(record: VMRecord) -> tuple[Disk, ...]:
    """The disks that a checkpoint freezes."""
    return tuple(disk for disk in record.spec.disks if not disk.read_only)


def top(disk: Disk) -> Image:
    """The image that the guest writes now."""
    return Image(volume=disk.volume, format=disk.format)


def _below(record: VMRecord, parent: str, disk: str) -> str:
    """Volume that the image above rests on, found from the checkpoint before it; empty: none."""
    found = (one.images[disk] for one in line(record, parent) if disk in one.images)
    return next((image.volume for image in found), "")


def overlays(record: VMRecord, disk: Disk, volume: str) -> tuple[tuple[str, Image], ...]:
    """What rests directly on `volume`: (id of its checkpoint, image); an empty id is the top."""
    found = [
        (one.id, one.images[disk.name])
        for one in record.checkpoints
        if disk.name in one.images and _below(record, one.parent, disk.name) == volume
    ]
    if _below(record, record.at, disk.name) == volume:
        found.append(("", top(disk)))
    return tuple(found)


# ---- changes of the record -------------------------------------------------------------------


def with_tops(record: VMRecord, tops: Mapping[str, Image]) -> Changes:
    """The disks have these images on top."""
    disks = tuple(
        replace(disk, volume=tops[disk.name].volume, format=tops[disk.name].format)
        if disk.name in tops
        else disk
        for disk in record.spec.disks
    )
    return {"spec": replace(record.spec, disks=disks)}


def frozen(record: VMRecord, checkpoint: Checkpoint, tops: Mapping[str, Image]) -> Changes:
    """What the disks have on top becomes `checkpoint`; `tops`, empty still, are put on it."""
    images = {disk.name: top(disk) for disk in record.spec.disks if disk.name in tops}
    made = replace(checkpoint, parent=record.at, images=images)
    return {
        **with_tops(record, tops),
        "checkpoints": (*record.checkpoints, made),
        "at": made.id,
    }


def hidden(record: VMRecord, checkpoints: Collection[str]) -> Changes:
    """Their users have deleted them: not shown any more, their memory leaves."""
    memories = [
        one.memory.place for one in record.checkpoints if one.id in checkpoints and one.memory
    ]
    return {
        "checkpoints": tuple(
            replace(one, hidden=True, memory=None) if one.id in checkpoints else one
            for one in record.checkpoints
        ),
        "leaving": (*record.leaving, *memories),
    }


def dropped(record: VMRecord) -> Changes:
    """Without the deleted checkpoints that nothing rests on; empty if there are none."""
    changed, leaving = record, list(record.leaving)
    while gone := [
        one for one in changed.checkpoints if one.hidden and not resting(changed, one.id)
    ]:
        pools = {disk.name: disk.pool for disk in record.spec.disks}
        leaving += [
            Volume(pool=pools[disk], volume=image.volume)
            for one in gone
            for disk, image in one.images.items()
        ]
        rest = tuple(one for one in changed.checkpoints if one not in gone)
        changed = replace(changed, checkpoints=rest)
    if changed is record:
        return {}
    return {"checkpoints": changed.checkpoints, "leaving": tuple(leaving)}


def mergeable(record: VMRecord) -> Checkpoint | None:
    """The oldest deleted checkpoint on which exactly one branch rests."""
    return next(
        (one for one in record.checkpoints if one.hidden and resting(record, one.id) == 1), None
    )


def merged(record: VMRecord, gone: Checkpoint, disk: Disk) -> Changes:
    """The one image that rests on that of `gone` has been written down into it, which takes its
    place. A checkpoint without an image left is gone itself.
    """
    base = gone.images[disk.name]
    ((upper, image),) = overlays(record, disk, base.volume)
    rest = {name: other for name, other in gone.images.items() if name != disk.name}
    checkpoints = []
    for one in record.checkpoints:
        if one.id == gone.id:
            changed = replace(one, images=rest)
        elif one.id == upper:
            changed = replace(one, images={**one.images, disk.name: base})
        else:
            changed = one
        checkpoints.append(changed)
    changes: Changes = {} if upper else with_tops(record, {disk.name: base})
    changes |= {
        "checkpoints": tuple(checkpoints),
        "leaving": (*record.leaving, Volume(pool=disk.pool, volume=image.volume)),
    }
    return changes if rest else changes | _removed(replace(record, **changes), gone)


def _removed(record: VMRecord, gone: Checkpoint) -> Changes:
    """What came after `gone` comes after the one before it."""
    return {
        "checkpoints": tuple(
            replace(one, parent=gone.parent) if one.parent == gone.id else one
            for one in record.checkpoints
            if one.id != gone.id
        ),
        "at": gone.parent if record.at == gone.id else record.at,
    }


def without(record: VMRecord, gone: Checkpoint) -> Changes:
    """Without a checkpoint that has no images: of a VM without disks."""
    return _removed(record, gone)


def renamed(record: VMRecord, checkpoint: Checkpoint, name: str) -> Changes:
    return {
        "checkpoints": tuple(
            replace(one, name=name) if one.id == checkpoint.id else one
            for one in record.checkpoints
        )
    }
