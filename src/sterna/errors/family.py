"""The base of all errors, and the families: the class says what the caller must do."""

from __future__ import annotations

from typing import Any, ClassVar


class SternaError(Exception):
    """Base of all errors that a user may see. Keyword arguments fill `text` and `hint`."""

    code: ClassVar[str] = "internal"
    text: ClassVar[str] = "{detail}"
    hint: ClassVar[str] = ""
    status: ClassVar[int] = 500  # HTTP, RFC 9457 problem details
    exit_code: ClassVar[int] = 1  # DESIGN: exit codes of the command line

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """One sentence that names the thing."""
        return self.text.format_map(_Facts(self.facts))

    @property
    def advice(self) -> str:
        """The fix, often a command; empty if there is none to give."""
        return self.hint.format_map(_Facts(self.facts))

    def problem(self) -> dict[str, Any]:
        """RFC 9457 body; `from_problem` is its inverse."""
        return {
            "type": f"https://sterna.invalid/problems/{self.code}",
            "title": self.message,
            "status": self.status,
            "code": self.code,
            "exit_code": self.exit_code,
            "hint": self.advice,
            "facts": {key: _plain(value) for key, value in self.facts.items()},
        }


class _Facts(dict[str, Any]):
    """A fact that is missing (another version left it out) shows as `<name>`; never an error."""

    def __missing__(self, key: str) -> str:
        return _Missing(f"<{key}>")


class _Missing(str):
    __slots__ = ()

    def __format__(self, _spec: str) -> str:
        return str(self)


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


class Invalid(SternaError):
    """The request itself is wrong; nothing happened. Correct it and ask again."""

    status = 400
    exit_code = 2


class Refused(SternaError):
    """Checks say no; nothing happened."""

    status = 422
    exit_code = 3


class NotFound(SternaError):
    """There is no such thing here."""

    status = 404
    exit_code = 4


class Conflict(SternaError):
    """The thing is in a state, or in use, that forbids this now; nothing happened."""

    status = 409
    exit_code = 4


class Denied(SternaError):
    """The caller may not do this."""

    status = 403
    exit_code = 5


class Unreachable(SternaError):
    """A host, daemon or socket does not answer; nothing is known to have happened."""

    status = 502
    exit_code = 6


class Failed(SternaError):
    """It was tried, it failed, it was undone: things are as before."""

    exit_code = 1


class TimedOut(Failed):
    """A deadline passed; what was begun has been undone."""

    status = 504


class Cancelled(SternaError):
    """A user stopped it; it was undone."""

    status = 409
    exit_code = 7


class Partial(SternaError):
    """Done or undone, but something was left behind: the text says what and how to clear it."""

    exit_code = 11


class Unknown(SternaError):
    """The outcome cannot be known now: look before you act."""

    exit_code = 9


class Corrupt(SternaError):
    """Something stored is damaged; it was set aside, not dropped."""
