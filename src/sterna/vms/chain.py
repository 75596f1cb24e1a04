"""The images of a VM: which rest on which, and what files belong to it. Pure functions.

Read from the record alone. Templates (`Disk.base`) are parts of chains and never files of the VM.
"""

from __future__ import annotations

from collections.abc import Iterator

from sterna.host.registry import Pools
from sterna.model.disk import Checkpoint, Image, Volume, node_name
from sterna.model.vm import CD, Disk, VMRecord, VMSpec
from sterna.qemu.nodes import Layer


def line(record: VMRecord, checkpoint: str) -> Iterator[Checkpoint]:
    """The checkpoint of that id and those before it, the newest first; nothing for an empty id."""
    known = {one.id: one for one in record.checkpoints}
    while checkpoint:
        found = known[checkpoint]
        yield found
        checkpoint = found.parent


def images(record: VMRecord, disk: Disk) -> tuple[Image, ...]:
    """The whole chain of a disk, the top first."""
    frozen = (one.images[disk.name] for one in line(record, record.at) if disk.name in one.images)
    return (Image(volume=disk.volume, format=disk.format), *frozen, *disk.base)


def layers(record: VMRecord, disk: Disk, pools: Pools) -> tuple[Layer, ...]:
    """`images`, where this host has them. Raises PoolNotFound, VolumeForbidden."""
    return tuple(
        Layer(
            node=node_name(disk.pool, image.volume),
            path=pools.volume_path(disk.pool, image.volume),
            format=image.format,
        )
        for image in images(record, disk)
    )


def own_images(record: VMRecord, disk: Disk) -> tuple[Image, ...]:
    """All images of a disk that are the VM's own, those of all branches of its checkpoints."""
    frozen = (one.images[disk.name] for one in record.checkpoints if disk.name in one.images)
    return (Image(volume=disk.volume, format=disk.format), *frozen)


def own_files(record: VMRecord) -> tuple[Volume, ...]:
    """Every file in pools that is the VM's own: images, memory of checkpoints, saved state."""
    files = [
        Volume(pool=disk.pool, volume=image.volume)
        for disk in record.spec.disks
        for image in own_images(record, disk)
    ]
    files += [one.memory.place for one in record.checkpoints if one.memory is not None]
    files += [record.saved.place] if record.saved is not None else []
    return tuple(dict.fromkeys(files))


def medium(cd: CD, pools: Pools) -> Layer | None:
    """What is in the drive, where this host has it. Raises PoolNotFound, VolumeForbidden.

    Its node is the drive's own: two drives may have the same medium.
    """
    if cd.medium is None:
        return None
    node = node_name(f"cd-{cd.name}:{cd.pool}", cd.volume)
    return Layer(node=node, path=pools.volume_path(cd.pool, cd.volume), format="raw")


def media(spec: VMSpec) -> tuple[Volume, ...]:
    """The files in its CD drives, which others may read too."""
    return tuple(dict.fromkeys(cd.medium for cd in spec.cds if cd.medium is not None))


def pools(record: VMRecord) -> frozenset[str]:
    """The pools that hold anything of the VM's, or a medium that it reads."""
    disks = (disk.pool for disk in record.spec.disks)
    files = (file.pool for file in (*own_files(record), *media(record.spec)))
    return frozenset([*disks, *files])
