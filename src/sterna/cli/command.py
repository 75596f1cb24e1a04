"""What all commands share: options for the host and the output, examples in their help, groups
whose modules are imported only when one of their commands is wanted.

Options of a command win over the same options before it (`sterna -o json vm list -o table`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sterna.client import Client


class Settings:
    """The shared options as given, and the client that they describe. One for each run."""

    def __init__(self) -> None:
        self.host = ""
        self.certificate = ""
        self.output = "table"
        self.reason = ""

    @property
    def is_json(self) -> bool:
        return self.output == "json"

    def client(self, connect_s: float | None = None) -> Client:
        """A client of the chosen host. Raises BadConfig if it cannot be known where that is."""
        from sterna.cli.target import client  # noqa: PLC0415 - start-up time

        host = self.host or os.environ.get("STERNA_HOST", "")
        return client(host, self.certificate, connect_s, self.reason)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and isinstance(context.obj, Settings) and parameter.name:
        setattr(context.obj, parameter.name, value)


def _hosts(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from sterna.cli.target import known  # noqa: PLC0415 - start-up time
    from sterna.errors import SternaError  # noqa: PLC0415

    try:
        return [name for name in known() if name.startswith(incomplete)]
    except SternaError:
        return []


def shared_options() -> list[click.Option]:
    """Fresh option objects that fill the run's Settings."""
    keep: dict[str, Any] = {"expose_value": False, "callback": _keep}
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["table", "json"]),
            help="How to print results; json is for programs.",
            **keep,
        ),
        click.Option(
            ["--host"],
            metavar="HOST",
            help="Host to talk to: a known name, https://HOST:PORT or unix:///PATH. "
            "Default: $STERNA_HOST, else this machine.",
            shell_complete=_hosts,
            **keep,
        ),
        click.Option(
            ["--certificate"],
            type=click.Path(),
            metavar="FILE",
            help="The host's certificate (PEM), as `sterna host certificate` printed it there.",
            **keep,
        ),
        click.Option(
            ["--reason"],
            metavar="TEXT",
            help="Why you do this: the host's audit keeps it.",
            **keep,
        ),
    ]


class Command(click.Command):
    """A command with the shared options and a list of examples at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.shared = shared_options()

    def get_short_help_str(self, limit: int = 45) -> str:
        """As click's; a sentence that is too long for a list ends at its first pause there."""
        short = super().get_short_help_str(limit)
        if not short.endswith("..."):
            return short
        first = re.split(r"[,;:]", " ".join((self.help or "").split()), maxsplit=1)[0]
        return f"{first}." if len(first) < limit else short

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        return [*own[:-1], *self.shared, own[-1]] if own else list(self.shared)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter, self.shared)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click
        write_examples(formatter, self.examples)


class Group(click.Group):
    """A group whose commands are listed in the order in which they were defined."""

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click
        write_examples(formatter, self.examples)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but an unknown command is told with the ones that look like it."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(_unknown(self, ctx, args[0]), ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group of commands named by `module:attribute`, each with its one-line help."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy
        self.shared = shared_options()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self.shared]

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter, self.shared)
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])


def _write_options(
    command: click.Command,
    ctx: click.Context,
    formatter: click.HelpFormatter,
    shared: Sequence[click.Parameter],
) -> None:
    options = [p for p in command.get_params(ctx) if isinstance(p, click.Option)]
    own = [p.get_help_record(ctx) for p in options if p not in shared]
    if rows := [record for record in own if record is not None]:
        with formatter.section("Options"):
            formatter.write_dl(rows)
    with formatter.section("Options of all commands"):
        formatter.write_dl([r for p in shared if (r := p.get_help_record(ctx)) is not None])


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def _unknown(group: Group, ctx: click.Context, name: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - start-up time

    near = get_close_matches(name, group.list_commands(ctx))
    maybe = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{ctx.command_path} has no command {name!r}{maybe}"


def command(group: click.Group, name: str, *examples: str) -> Callable[..., Any]:
    """Decorator: a Command `name` in `group`, its help's examples given here."""
    return group.command(name, cls=Command, examples=examples)


def group(name: str, help_text: str, *examples: str) -> Group:
    """A group as a module-level object; its commands are added with `command`."""
    return Group(name, help=help_text, short_help=help_text, examples=examples)
