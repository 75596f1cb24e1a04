"""What of a VM's disks and files goes along with it, where to and how. No I/O.

`sterna.move.travel` decides it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.model.disk import Checkpoint, StateFile, Volume
from sterna.model.reservation import FileOffer, MirrorOffer
from sterna.model.vm import Disk, VMSpec

GROWTH = 1.05  # what an image may take more than before: other clusters, tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A file that travels: where it is here, and what the target is told of it."""

    source: Volume
    offer: FileOffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirroring:
    """A disk whose top image is mirrored. With `is_whole` all that it rests on becomes a part of it."""

    disk: Disk  # as it is here
    offer: MirrorOffer
    is_whole: bool
    lost: tuple[str, ...] = ()  # dirty bitmaps that its image there cannot keep
    snapshots: tuple[str, ...] = ()  # within its image, which no mirror carries


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """What is in a CD drive. One that travels stays here too; it is sent unless the target has it."""

    drive: str
    source: Volume
    place: Volume  # on the target
    travels: bool
    size: int | None = None  # bytes; None: it is not here any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Travel:
    """The plan. `spec`, `checkpoints`, `at` and `saved` are as the target shall have them."""

    spec: VMSpec
    checkpoints: tuple[Checkpoint, ...]
    at: str
    saved: StateFile | None
    files: tuple[Parcel, ...]
    mirrors: tuple[Mirroring, ...]
    leaving: tuple[Volume, ...]  # the source's files that the target has too, in the end
    disks: frozenset[str]  # names of those that travel
    media: tuple[Medium, ...] = ()  # in CD drives
    locked: tuple[Volume, ...] = ()  # of a VM that is off: files that another program has open
    is_sown: bool = False  # the disks were frozen for this move, see `seed`

    @property
    def is_empty(self) -> bool:
        """Whether nothing but the definition and the memory goes."""
        return not self.files and not self.mirrors

    def disk(self, name: str) -> Disk:
        """The disk of that name as the target shall have it."""
        return next(disk for disk in self.spec.disks if disk.name == name)

    def needs(self) -> dict[str, int]:
        """Bytes that the target's pools must have free for the mirrors, at least, by pool.

        What files need only the target can say: it may have a part of them.
        """
        room: dict[str, int] = {}
        for mirror in self.mirrors:
            pool = self.disk(mirror.disk.name).pool
            room[pool] = room.get(pool, 0) + int(mirror.offer.allocated * GROWTH)
        return room

    def grown(self, pool: str) -> int:
        """Bytes that the mirrored disks in `pool` take when their guests have filled them."""
        return sum(
            mirror.offer.size for mirror in self.mirrors if self.disk(mirror.disk.name).pool == pool
        )
