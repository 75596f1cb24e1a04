"""`sterna completion`: the script that teaches a shell to complete our commands and names."""

from __future__ import annotations

import click

from sterna.cli.command import Command

VARIABLE = "_STERNA_COMPLETE"  # click asks for completions through it


@click.command(
    "completion",
    cls=Command,
    short_help="Print the completion script of a shell.",
    examples=(
        "sterna completion bash > /etc/bash_completion.d/sterna",
        "sterna completion zsh > /usr/local/share/zsh/site-functions/_sterna",
        "sterna completion fish > ~/.config/fish/completions/sterna.fish",
        "source <(sterna completion bash)",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, and the names of VMs, hosts, switches, pools and operations;
    while the daemon is away it offers no names and says nothing.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - start-up time

    root = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, "sterna", VARIABLE).source())
