"""Disk images: where they are, how they rest on each other, and points in time to go back to.

A disk is a chain of images, the top first: the one the guest writes, then the images that its
checkpoints have frozen, then the base images (templates) that it was made from. All images of a
disk are in the pool of that disk; each refers to the one below it by its plain file name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

STRICT: dict[str, Any] = {"extra": "forbid"}

ImageFormat = Literal["qcow2", "raw"]


def require_file_name(volume: str) -> None:
    """ValueError unless `volume` is a plain, visible file name."""
    if "/" in volume or volume.startswith(".") or not volume.isprintable():
        raise ValueError(f"volume {volume!r} must be a plain file name in its pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One file in a pool."""

    __pydantic_config__ = STRICT

    pool: str
    volume: str  # plain file name

    def __post_init__(self) -> None:
        require_file_name(self.volume)

    def __str__(self) -> str:
        return f"{self.pool}/{self.volume}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of a chain; its pool is that of its disk."""

    __pydantic_config__ = STRICT

    volume: str  # plain file name
    format: ImageFormat = "qcow2"

    def __post_init__(self) -> None:
        require_file_name(self.volume)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """Memory and device state of a stopped moment: QEMU's migration stream in a file."""

    __pydantic_config__ = STRICT

    pool: str
    volume: str
    size: int  # bytes
    sha256: str  # hex, of the whole file
    accel: Literal["kvm", "tcg"]  # that it was made under; the other cannot load it
    machine: str = ""  # and the machine type; empty: written before this was noted
    cpu: str = ""  # and the processor, as `CPUChoice.text` has it

    @property
    def place(self) -> Volume:
        return Volume(pool=self.pool, volume=self.volume)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A point in time of a VM. `images` are what each disk's chain had on top then, frozen since."""

    __pydantic_config__ = STRICT

    id: str  # 8 hex digits
    name: str  # unique within the VM
    created: str
    parent: str = ""  # id of the checkpoint before it; empty: the first
    images: dict[str, Image] = field(default_factory=dict)  # by the disk's name
    memory: StateFile | None = None  # None: disks only
    # Deleted by its user, but other images still rest on its images: no longer shown, and its
    # images go with the last that needs them.
    hidden: bool = False


def node_name(pool: str, volume: str) -> str:
    """Name of the block node in QEMU for an image: the same in every QEMU, for good.

    QEMU allows 31 characters; this is 16, and `-file` is added for the file below it.
    """
    return "v" + hashlib.sha256(f"{pool}/{volume}".encode()).hexdigest()[:15]
