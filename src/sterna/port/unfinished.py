"""What an export or import that is under way has made: removed by whoever undoes or recovers it.

Written durably before the first of it is made, deleted when it is whole or gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sterna.model.disk import STRICT, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    id: str  # of the operation
    vm: str
    vm_id: str
    folder: str
    part: str = ""  # folder with a name of ours that nobody else uses
    checkpoint: str = ""  # name of one that was made for this
    files: tuple[Volume, ...] = ()
    pool: str = ""  # made for this
