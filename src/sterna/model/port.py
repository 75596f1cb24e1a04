"""A VM as a folder, and what users wish of exports and imports. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from sterna.model.cpu import CPUChoice
from sterna.model.disk import STRICT, Checkpoint, StateFile, require_file_name
from sterna.model.vm import VMSpec, require_name

MANIFEST = "sterna-vm.json"
DISKS = "disks"  # the folder's files lie here, all of them side by side


def _folder(folder: str) -> str:
    """`folder` without a slash at its end. ValueError unless it is an absolute path."""
    if not folder.startswith("/") or "\0" in folder:
        raise ValueError(f"folder {folder!r} must be an absolute path of the host")
    return str(PurePosixPath(folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """One file of `disks/`."""

    __pydantic_config__ = STRICT

    name: str  # plain file name
    size: int  # bytes, holes included
    allocated: int  # bytes that it took on the disk that it came from
    sha256: str  # hex, of the whole file as any program reads it
    is_template: bool = False  # other VMs may rest on it too

    def __post_init__(self) -> None:
        require_file_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`sterna-vm.json`: the VM as its host knew it. Pools in it are those of that host."""

    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    exported: str  # RFC 3339
    host: str
    spec: VMSpec
    created: str = ""
    checkpoints: tuple[Checkpoint, ...] = ()
    at: str = ""
    saved: StateFile | None = None
    cpu_next: CPUChoice | None = None  # what its guest shall see as a processor from its next start
    nvram: str = ""  # UEFI variables, base64
    tpm: str = ""  # state of its TPM, encrypted, base64
    protector: dict[str, str] = field(default_factory=dict)  # its key, sealed for guardians
    files: tuple[ExportedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportWishes:
    """Body of POST /v1/vms/{vm}/exports."""

    __pydantic_config__ = STRICT

    folder: str  # absolute, on the host; must not exist
    checkpoint: str = ""  # the VM as it was then; empty: as it is now
    memory: bool = True  # saved state and memory of checkpoints too

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", _folder(self.folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportWishes:
    """Body of POST /v1/imports and of /v1/imports:check."""

    __pydantic_config__ = STRICT

    folder: str  # absolute, on the host
    register: bool = False  # use the files where they are; else they are copied into pools
    new_identity: bool = False  # another id and other MACs, to run beside the original
    memory: bool = True  # saved state and memory of checkpoints too
    name: str = ""  # empty: as it was
    pool: str = ""  # for all files; with `register`: what the folder's pool is to be called
    pools: dict[str, str] = field(default_factory=dict)  # there -> here
    switches: dict[str, str] = field(default_factory=dict)  # there -> here

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", _folder(self.folder))
        if self.name:
            require_name(self.name, "a VM")
        if self.pool:
            require_name(self.pool, "a pool")
        if self.register and self.pools:
            raise ValueError("pools are for copies; a folder that is registered is one pool")
