"""Reference pages made from the code itself, so that they cannot drift from it.

Directives: `sterna-errors` (every problem code), `sterna-exit-codes`, `sterna-config` (keys of
sternad.toml with types and defaults), `sterna-checks` (every check of a move), `sterna-kerberos` (what may be wrong with Kerberos), `sterna-cli` (the help of every command), `sterna-convergence` (what is done when a guest is too busy).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import sterna
from sterna import checks, config
from sterna.checks import registry
from sterna.cli.command import Settings
from sterna.cli.main import sterna as command_line
from sterna.errors import SternaError
from sterna.kerberos import situations
from sterna.move import policy


class FromCode(SphinxDirective):
    """Parses the Markdown that `lines` gives in its place."""

    def run(self) -> list[nodes.Node]:
        node = nodes.section()
        node.document = self.state.document
        text = list(self.lines())
        self.state.nested_parse(StringList(text, self.get_source_info()[0]), 0, node)
        return node.children

    def lines(self) -> Iterator[str]:
        raise NotImplementedError


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def _families() -> list[type[SternaError]]:
    return [cls for cls in _all(SternaError) if "code" not in vars(cls) and cls.__doc__]


def _all(cls: type[SternaError]) -> list[type[SternaError]]:
    return [found for child in cls.__subclasses__() for found in (child, *_all(child))]


def _sentence(doc: str | None) -> str:
    return " ".join((doc or "").split("\n\n")[0].split())


class Errors(FromCode):
    def lines(self) -> Iterator[str]:
        for module in pkgutil.walk_packages(sterna.__path__, "sterna."):
            import_module(module.name)
        for family in [SternaError, *_families()]:
            found = [cls for cls in _all(family) if "code" in vars(cls)]
            own = [cls for cls in found if _family(cls) is family and cls.text != "{detail}"]
            if not own:
                continue
            yield ""
            yield f"**{family.__name__}.** {_sentence(family.__doc__)}"
            yield from _table(
                ("code", "HTTP", "exit", "what it says", "the fix it gives"),
                [
                    (f"`{cls.code}`", str(cls.status), str(cls.exit_code), _shown(cls.text),
                     _shown(cls.hint))
                    for cls in sorted(own, key=lambda cls: cls.code)
                ],
            )  # fmt: skip


def _family(cls: type[SternaError]) -> type[SternaError]:
    return next(base for base in cls.__mro__ if "code" not in vars(base) or base is SternaError)


def _shown(template: str) -> str:
    return template.replace("<", "&lt;").replace("*", "\\*")


class ExitCodes(FromCode):
    def lines(self) -> Iterator[str]:
        from sterna.cli import follow, main  # noqa: PLC0415 - only this page needs them

        words = {
            0: "done",
            follow.EXIT["warned"]: "done, with warnings",
            follow.STILL_RUNNING: "still running: the time to wait was over, the operation goes on",
            main.INTERRUPTED: "ended by Ctrl-C, where there was nothing to cancel",
            main.BROKEN_PIPE: "the reader of the output went away",
        }
        for family in _families():
            if family.exit_code in vars(family).values():
                words.setdefault(family.exit_code, _sentence(family.__doc__))
        words[4] = "there is no such thing, or its state or use forbids this now; nothing happened"
        yield from _table(
            ("exit code", "meaning"), [(f"`{code}`", words[code]) for code in sorted(words)]
        )


class Configuration(FromCode):
    def lines(self) -> Iterator[str]:
        comments = _comments(Path(inspect.getfile(config)).read_text())
        rows = list(_keys(config.Config, "", comments))
        yield from _table(("key", "type", "default", "meaning"), rows)


def _keys(cls: Any, prefix: str, comments: dict[tuple[str, str], str]) -> Iterator[tuple[str, ...]]:
    tables = {
        "listen": config.Listen,
        "access": config.Access,
        "kerberos": config.Kerberos,
        "qemu": config.QEMU,
        "migration": config.Migration,
    }
    for field in dataclasses.fields(cls):
        if not prefix and field.name in tables:
            yield from _keys(tables[field.name], f"{field.name}.", comments)
            continue
        kind = str(field.type).replace("tuple[str, ...]", "list of texts")
        yield (
            f"`{prefix}{field.name}`",
            f"`{kind}`",
            _default(field),
            comments.get((cls.__name__, field.name), ""),
        )


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "the host name" if field.name == "name" else "required"
    return f"`{field.default}`" if field.default not in ("", None, ()) else "none"


def _comments(source: str) -> dict[tuple[str, str], str]:
    """The comment behind each field of the module's classes."""
    lines = source.splitlines()
    return {
        (cls.name, node.target.id): lines[node.lineno - 1].split("  # ", 1)[1]
        for cls in ast.parse(source).body
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and "  # " in lines[node.lineno - 1]
    }


class Convergence(FromCode):
    """`sterna-convergence`: the ladders of the convergence policy."""

    def lines(self) -> Iterator[str]:
        rows = [
            (f"`{name}`", ", then ".join(_rung(rung) for rung in ladder))
            for name, ladder in policy.LADDERS.items()
        ]
        yield from _table(("`--on-stall`", "what is done, in this order"), rows)


def _rung(rung: policy.Rung) -> str:
    match rung.kind:
        case policy.Kind.PAUSE:
            return f"allow {rung.amount:.0%} of the longest pause"
        case policy.Kind.THROTTLE:
            return f"slow the guest down by {rung.amount:g} % or more"
        case policy.Kind.POSTCOPY:
            return "post-copy"
        case policy.Kind.GIVE_UP:
            return "give up and undo"


class Checks(FromCode):
    """`sterna-checks`: every check, by area."""

    def lines(self) -> Iterator[str]:
        for area in checks.__all__:
            module = import_module(f"sterna.checks.{area}")
            found = [one for one in registry.CHECKS.values() if one.area == area]
            yield from ("", f"**{area}.** {_sentence(module.__doc__)}")
            yield from _table(
                ("id", "severity", "what it makes sure of"),
                [(f"`{one.id}`", str(one.severity), one.meaning) for one in found],
            )


class Kerberos(FromCode):
    """`sterna-kerberos`: every situation that `sterna kerberos check` tells apart."""

    def lines(self) -> Iterator[str]:
        rows = [
            (f"`{name}`", one.weight.value, one.says.replace("{", "*").replace("}", "*"))
            for name, one in situations.SITUATIONS.items()
        ]
        yield from _table(("id", "severity", "what it says"), rows)


class CommandLine(FromCode):
    def lines(self) -> Iterator[str]:
        yield from _help(command_line, "sterna", None)


def _help(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(
        command, info_name=name, parent=parent, obj=Settings(), max_content_width=90,
        terminal_width=90,
    )  # fmt: skip
    yield from ("", f"**{context.command_path}**", "", "```text")
    yield from command.get_help(context).splitlines()
    yield from ("```", "")
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _help(found, child, context)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("sterna-errors", Errors)
    app.add_directive("sterna-exit-codes", ExitCodes)
    app.add_directive("sterna-config", Configuration)
    app.add_directive("sterna-checks", Checks)
    app.add_directive("sterna-kerberos", Kerberos)
    app.add_directive("sterna-cli", CommandLine)
    app.add_directive("sterna-convergence", Convergence)
    return {"parallel_read_safe": True}
