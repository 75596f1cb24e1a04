"""Everything that can go wrong, by what the caller must do about it.

The family of an error says what to do next (`Refused`: nothing happened; `Unknown`: look before
you act); the concrete class gives it a stable `code`, one sentence that names the thing, and a
hint with the fix. Attributes come first, the text is made from them. `PROBLEMS` lists every
concrete class; HTTP status and exit code come from the family, so there is one table only.
"""

from __future__ import annotations

from typing import Any

from sterna.errors.access import *
from sterna.errors.carrier import *
from sterna.errors.checkpoint import *
from sterna.errors.family import *
from sterna.errors.family import SternaError
from sterna.errors.host import *
from sterna.errors.lab import *
from sterna.errors.machine import *
from sterna.errors.move import *
from sterna.errors.operation import *
from sterna.errors.place import *
from sterna.errors.port import *
from sterna.errors.qemu import *
from sterna.errors.request import *
from sterna.errors.secret import *
from sterna.errors.several import *
from sterna.errors.trust import *
from sterna.errors.vm import *


def _concrete(cls: type[SternaError]) -> dict[str, type[SternaError]]:
    found = {cls.code: cls} if "code" in vars(cls) else {}
    for child in cls.__subclasses__():
        found |= _concrete(child)
    return found


PROBLEMS: dict[str, type[SternaError]] = _concrete(SternaError)


class RemoteError(SternaError):
    """A problem that another daemon reported, with its words kept as they were."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        super().__init__(**body.get("facts", {}))

    @property
    def message(self) -> str:
        return str(self.body.get("title", "the daemon answered with an error"))

    @property
    def advice(self) -> str:
        return str(self.body.get("hint", ""))

    def problem(self) -> dict[str, Any]:
        return self.body


def from_problem(body: dict[str, Any]) -> SternaError:
    """The error that a problem body describes; of its own class if this version knows the code."""
    cls = PROBLEMS.get(str(body.get("code")))
    if cls is None:
        return RemoteError(body)
    return cls(**body.get("facts", {}))
