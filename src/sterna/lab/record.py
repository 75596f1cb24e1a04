"""What is written down of a lab: enough to find it again, use it and remove it.

Promises that a lab's name alone leads to its folder and its namespaces, so that a record which is
missing or damaged never keeps a lab from being removed.
"""

from __future__ import annotations

import json
import os
import re
import string
from dataclasses import asdict, dataclass
from pathlib import Path

from sterna.errors import BadSpec
from sterna.lab.processes import Process

VERSION = 1
MAX_HOSTS = 26  # hv-a to hv-z
_ROOT = Path("/var/lib/sterna-lab")
_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")  # no dash: it ends the name in `sterna-NAME-ROLE`
_SOCKET_BYTES = 107  # sun_path of Linux, without its last zero
_LONGEST_SOCKET = "/hv-a/run/vms/00000000-0000-0000-0000-000000000000/serial"


def root() -> Path:
    """The folder of all labs: $STERNA_LAB_ROOT, else /var/lib/sterna-lab."""
    return Path(os.environ.get("STERNA_LAB_ROOT") or _ROOT)


def folder(lab: str) -> Path:
    return root() / lab


def host_names(count: int) -> tuple[str, ...]:
    """`hv-a`, `hv-b`, … Raises BadSpec."""
    if not 1 <= count <= MAX_HOSTS:
        raise BadSpec(where="hosts", reason=f"{count} is not between 1 and {MAX_HOSTS}")
    return tuple(f"hv-{letter}" for letter in string.ascii_lowercase[:count])


def check_name(lab: str) -> None:
    """BadSpec unless it can be a lab's name, here."""
    if not _NAME.fullmatch(lab):
        reason = f"{lab!r} is not a name: use lower-case letters and digits, at most 12"
        raise BadSpec(where="lab", reason=reason)
    longest = len(f"{folder(lab)}{_LONGEST_SOCKET}")
    if longest > _SOCKET_BYTES:
        reason = f"{root()} is too long: sockets below it may have {_SOCKET_BYTES} bytes at most"
        raise BadSpec(where="$STERNA_LAB_ROOT", reason=f"{reason}, and one would have {longest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One lab. `owner` is the process it ends with; None: it stays until it is removed."""

    name: str
    hosts: tuple[str, ...]
    rate: str | None  # of the migration network, in tc's words
    accel: str
    probe_kernel: str
    owner: Process | None = None
    migrations: int = 1  # how many migration networks it has

    @property
    def folder(self) -> Path:
        return folder(self.name)

    def write(self) -> None:
        new = self.folder / "lab.json.new"
        new.write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n")
        new.replace(self.folder / "lab.json")


def read(lab: str) -> Record | None:
    """None if there is no such lab, or none that got as far as being written down."""
    try:
        data = json.loads((folder(lab) / "lab.json").read_text())
        if data.pop("version") != VERSION:
            return None
        owner = data.pop("owner")
        hosts = tuple(data.pop("hosts"))
        return Record(**data, hosts=hosts, owner=Process(**owner) if owner else None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
