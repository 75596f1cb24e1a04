"""What an import comes to: which files become what, and how the record will look. Pure functions."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sterna.model.disk import Checkpoint, Image, StateFile, Volume
from sterna.model.port import ImportWishes, Manifest
from sterna.model.vm import Disk, Ownership, OwnershipState, VMRecord
from sterna.port.export import places, without_memory
from sterna.vms import media
from sterna.vms.inspect import links
from sterna.vms.specify import random_mac


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One file of the folder, and what it becomes."""

    name: str  # in the folder
    place: Volume
    is_template: bool
    below: Image | None = None  # what its header must name, if that has another name now


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    record: VMRecord  # epoch 1, until the host says otherwise
    arrivals: tuple[Arrival, ...]
    new_pool: str  # with `register`: to be made for the folder; empty: there is one
    dropped_memory: bool


def record_of(manifest: Manifest) -> VMRecord:
    """The VM as it was exported."""
    return VMRecord(
        spec=manifest.spec,
        ownership=Ownership(state=OwnershipState.OWNED, epoch=1),
        created=manifest.created,
        checkpoints=manifest.checkpoints,
        at=manifest.at,
        saved=manifest.saved,
        cpu_next=manifest.cpu_next,
        protector=manifest.protector,
    )


def plan(manifest: Manifest, wishes: ImportWishes, *, folder_pool: str) -> Plan:
    """`folder_pool`: the pool of this host that the folder's disks are already; empty: none."""
    return _Planning(manifest, wishes, folder_pool).plan()


class _Planning:
    def __init__(self, manifest: Manifest, wishes: ImportWishes, folder_pool: str) -> None:
        self._wishes = wishes
        self._folder_pool = folder_pool
        self._name = wishes.name or manifest.spec.name
        self._old = manifest.spec.name
        self._names = {one.name for one in manifest.files}
        before = record_of(manifest)
        has_memory = before.saved is not None or any(one.memory for one in before.checkpoints)
        # Memory holds the machine's id and its MACs: with others it would not load.
        self._drops = has_memory and (wishes.new_identity or not wishes.memory)
        self._before = without_memory(before) if self._drops else before
        self._templates = {base.volume for disk in before.spec.disks for base in disk.base}

    def plan(self) -> Plan:
        before = self._before
        spec = before.spec
        fresh = self._wishes.new_identity
        nics = tuple(
            replace(
                nic,
                switch=self._wishes.switches.get(nic.switch, nic.switch),
                mac=random_mac() if fresh else nic.mac,
            )
            for nic in spec.nics
        )
        record = replace(
            before,
            spec=replace(
                spec,
                name=self._name,
                id=str(uuid.uuid4()) if fresh else spec.id,
                nics=nics,
                cds=media.without(spec).cds,
                disks=tuple(self._disk(disk) for disk in spec.disks),
            ),
            checkpoints=tuple(self._checkpoint(one) for one in before.checkpoints),
            saved=self._state(before.saved),
        )
        return Plan(
            record=record,
            arrivals=tuple(self._arrivals(record)),
            new_pool=self._pool("") if self._wishes.register and not self._folder_pool else "",
            dropped_memory=self._drops,
        )

    def _arrivals(self, record: VMRecord) -> Iterator[Arrival]:
        below = {}
        for old, new in zip(self._before.spec.disks, record.spec.disks, strict=True):
            pairs = zip(links(self._before, old), links(record, new), strict=True)
            for was, now in pairs:
                if now.below and was.below and now.below.volume != was.below.volume:
                    below[now.image.volume] = now.below
        for (old_place, is_template), (place, _) in zip(
            places(self._before), places(record), strict=True
        ):
            yield Arrival(
                name=old_place.volume,
                place=place,
                is_template=is_template,
                below=below.get(place.volume),
            )

    def _pool(self, there: str) -> str:
        wishes = self._wishes
        if wishes.register:
            return self._folder_pool or wishes.pool or self._name
        return wishes.pools.get(there) or wishes.pool or there

    def _volume(self, volume: str) -> str:
        """A copy under another name has files of that name, unless another file of it has that."""
        prefix = f"{self._old}-"
        if self._wishes.register or volume in self._templates or not volume.startswith(prefix):
            return volume
        new = f"{self._name}-{volume.removeprefix(prefix)}"
        return volume if new in self._names else new

    def _image(self, image: Image) -> Image:
        return replace(image, volume=self._volume(image.volume))

    def _disk(self, disk: Disk) -> Disk:
        return replace(disk, pool=self._pool(disk.pool), volume=self._volume(disk.volume))

    def _state(self, state: StateFile | None) -> StateFile | None:
        if state is None:
            return None
        return replace(state, pool=self._pool(state.pool), volume=self._volume(state.volume))

    def _checkpoint(self, one: Checkpoint) -> Checkpoint:
        images = {disk: self._image(image) for disk, image in one.images.items()}
        return replace(one, images=images, memory=self._state(one.memory))
