"""What users wish of checkpoints. Bodies of the API; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.model.disk import STRICT
from sterna.model.move import DEFAULT_MAX_DOWNTIME_MS
from sterna.model.vm import require_name


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWishes:
    """Body of POST /v1/vms/{vm}/checkpoints."""

    __pydantic_config__ = STRICT

    name: str = ""  # empty: the time of day
    memory: bool | None = None  # None: of a VM that runs
    max_downtime_ms: int = DEFAULT_MAX_DOWNTIME_MS

    def __post_init__(self) -> None:
        if self.name:
            require_name(self.name, "a checkpoint")
        if not 1 <= self.max_downtime_ms <= 2_000_000:  # QEMU's own limit
            raise ValueError(
                f"max_downtime_ms is {self.max_downtime_ms}; it must be between 1 and 2000000"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyWishes:
    """Body of :apply. What the VM is now is lost, unless `keep` names a checkpoint for it."""

    __pydantic_config__ = STRICT

    memory: bool = True  # go on from the checkpoint's memory, if it has one
    force: bool = False  # cut off a VM that runs; throw a saved state away
    keep: str = ""  # first make a checkpoint of now with this name

    def __post_init__(self) -> None:
        if self.keep:
            require_name(self.keep, "a checkpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameWishes:
    """Body of :rename."""

    __pydantic_config__ = STRICT

    name: str

    def __post_init__(self) -> None:
        require_name(self.name, "a checkpoint")
