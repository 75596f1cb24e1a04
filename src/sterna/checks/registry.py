"""The checks by id, how one is registered, and how all are run.

    @check("network.switch-missing", BLOCKER, "The target has the switch of every NIC")
    def switch_missing(q: Question) -> Iterator[Finding]:
        ...
            yield Finding(f"...", fix="Make it there", command=there(q, "switch create lan"))

The module's name is the area. A check yields nothing when all is well, and one finding with the
actual values of both sides for each thing that is not. It does no I/O and never raises.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from sterna.checks.facts import Question
from sterna.errors import MoveRefused, SternaError
from sterna.model.check import Check, Severity

BLOCKER, WARNING, INFO = Severity.BLOCKER, Severity.WARNING, Severity.INFO
RANK = {BLOCKER: 0, WARNING: 1, INFO: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `fix` is a phrase for people, `command` the same as a command line.

    `command` is complete, or empty; `is_safe`: it changes no guest and destroys nothing.
    """

    text: str
    fix: str = ""
    command: str = ""
    is_safe: bool = False


Ask = Callable[[Question], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Registered:
    """One check."""

    id: str
    area: str
    severity: Severity
    meaning: str  # what it makes sure of, one sentence
    ask: Ask

    def run(self, q: Question) -> Iterator[Check]:
        """Its findings, ready to be shown."""
        for found in self.ask(q):
            yield Check(
                id=self.id,
                severity=self.severity,
                finding=found.text,
                fix=": ".join(part for part in (found.fix, found.command) if part),
                command=found.command,
                is_safe=found.is_safe,
            )


CHECKS: dict[str, Registered] = {}  # in the order in which they are asked


def check(identity: str, severity: Severity, meaning: str) -> Callable[[Ask], Ask]:
    """Decorator: the function is the check of that id."""

    def register(ask: Ask) -> Ask:
        if identity in CHECKS:
            raise ValueError(f"two checks are called {identity}")
        area = ask.__module__.rpartition(".")[2]
        CHECKS[identity] = Registered(identity, area, severity, meaning, ask)
        return ask

    return register


@dataclass(frozen=True, slots=True)
class Failure:
    """How an error that ended the look is told: by words that it says."""

    id: str
    words: tuple[str, ...]
    fix: str  # a template of the error's facts

    def of(self, error: SternaError) -> Check | None:
        """The finding, if `error` is of this kind."""
        if not any(word in error.message for word in self.words):
            return None
        facts = {"peer": "the target", "url": "its address", **error.facts}
        return Check(
            id=self.id, severity=BLOCKER, finding=error.message, fix=self.fix.format(**facts)
        )


FAILURES: list[Failure] = []


def failure(identity: str, meaning: str, words: tuple[str, ...], fix: str) -> None:
    """Register a reason for which the target cannot even be asked."""
    CHECKS[identity] = Registered(identity, "trust", BLOCKER, meaning, lambda _: iter(()))
    FAILURES.append(Failure(identity, words, fix))


def told(error: SternaError) -> Check:
    """An error that ended the look, as the finding that it is."""
    for one in FAILURES:
        if (found := one.of(error)) is not None:
            return found
    text = str(error.facts["summary"]) if isinstance(error, MoveRefused) else error.message
    return Check(id=error.code, severity=BLOCKER, finding=text, fix=error.advice)


def here(q: Question, command: str) -> str:  # noqa: ARG001 - says where, as `there` does
    """A command line for the source, where the user is."""
    return f"sterna {command}"


def there(q: Question, command: str) -> str:
    """A command line for the target, given from the source, by the name that it has there.

    What the target calls itself is its own word, and no part of a command.
    """
    return f"sterna --host {shlex.quote(q.wishes.target)} {command}"


def run(question: Question) -> list[Check]:
    """All findings, blockers first."""
    return in_order(one for item in CHECKS.values() for one in item.run(question))


def in_order(found: Iterable[Check]) -> list[Check]:
    """Blockers, then warnings; what was found twice only once."""
    return sorted(dict.fromkeys(found), key=lambda one: RANK[one.severity])


def blockers(found: Iterable[Check]) -> list[Check]:
    """Those that stand in the way."""
    return [one for one in found if one.severity is BLOCKER]


def refuse_blockers(vm: str, target: str, found: Sequence[Check]) -> list[Check]:
    """`found` without a blocker. Raises MoveRefused with all of them if there is one."""
    if stopping := blockers(found):
        first = stopping[0]
        more = f" (and {len(stopping) - 1} more)" if len(stopping) > 1 else ""
        raise MoveRefused(
            vm=vm,
            target=target,
            summary=first.finding + more,
            fix=first.fix,
            findings=[asdict(item) | {"severity": str(item.severity)} for item in found],
        )
    return list(found)
