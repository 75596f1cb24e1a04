"""How a failed command ends: two lines on stderr (what is wrong, the fix), with `-o json` a last
result line on stdout, and the exit code of DESIGN.md section 7. Never a traceback for a mistake
of the user or the world; always one for a mistake of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from sterna.cli.command import Settings
from sterna.cli.output import complaint, json_line
from sterna.errors import SternaError

USAGE = 2
STATES = {7: "cancelled", 9: "unknown", 11: "partial"}  # of a result line, by exit code


def report(error: Exception, settings: Settings, arguments: Sequence[str]) -> int:
    """Tell the user about `error` and return the exit code."""
    if isinstance(error, click.ClickException):
        problem = _usage(error)
    elif isinstance(error, SternaError):
        problem = error.problem()
    else:
        problem = _bug(error)
    tell(problem)
    if settings.is_json or _asks_json(arguments):
        json_line(result_of(problem))
    return exit_code(problem)


def exit_code(problem: Mapping[str, Any]) -> int:
    """The exit code that a problem body asks for."""
    code = problem.get("exit_code")
    return code if isinstance(code, int) and 0 < code < 128 else 1


def result_of(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The last line of `-o json` for a command that failed before it was an operation."""
    state = STATES.get(exit_code(problem), "failed")
    return {"type": "result", "state": state, "error": dict(problem)}


def tell(problem: Mapping[str, Any]) -> None:
    """The two lines, and between them the findings of a refused move if there are several."""
    complaint(f"sterna: {problem.get('title') or 'it failed'}")
    facts = problem.get("facts")
    findings = facts.get("findings") if isinstance(facts, Mapping) else None
    for finding in findings if isinstance(findings, list) and len(findings) > 1 else ():
        if isinstance(finding, Mapping):
            fix = f" ({finding['fix']})" if finding.get("fix") else ""
            complaint(f"  {finding.get('id', '?')}: {finding.get('finding', '')}{fix}")
    if hint := problem.get("hint"):
        complaint(f"fix: {hint}")


def _usage(error: click.ClickException) -> dict[str, Any]:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "sterna"
    text = error.format_message().rstrip(".")
    if type(error).__name__ == "NoArgsIsHelpError":
        text = f"{path} needs a command"
    return {
        "title": text[:1].lower() + text[1:],
        "code": "request.usage",
        "exit_code": USAGE,
        "hint": getattr(error, "advice", "") or f"See: {path} --help",
    }


def _bug(error: Exception) -> dict[str, Any]:
    import traceback  # noqa: PLC0415 - rarely needed

    traceback.print_exception(error)
    return {
        "title": f"a bug in sterna: {error!r}",
        "code": "internal",
        "exit_code": 1,
        "hint": "Please report it with the lines above",
    }


def _asks_json(arguments: Sequence[str]) -> bool:
    """Whether the command line wants JSON, for when it was too wrong to be parsed."""
    words = list(arguments)
    return any(
        word in ("-ojson", "--output=json")
        or (word in ("-o", "--output") and words[index + 1 : index + 2] == ["json"])
        for index, word in enumerate(words)
    )
