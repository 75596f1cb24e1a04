"""`sterna login`: an API token of a host for later commands of this user."""

from __future__ import annotations

import os
import sys

import click

from sterna.cli import tokens
from sterna.cli.command import Command, Settings


def secret(what: str) -> str:
    """One line: asked for on a terminal without showing it, else read from standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline(4096).rstrip("\r\n")
    return str(click.prompt(what, hide_input=True, err=True))


@click.command(
    "login",
    cls=Command,
    examples=(
        "sterna login host-b",
        "sterna --host https://192.0.2.7:7443 --certificate b.pem login",
    ),
)
@click.argument("host", required=False)
@click.option("--forget", is_flag=True, help="Throw the token away.")
@click.pass_obj
def login(settings: Settings, host: str | None, forget: bool) -> None:
    """Keep an API token of a host for later commands.

    It is asked for, or read from standard input, and tried. It never belongs on a command line.
    """
    from sterna.cli.output import line  # noqa: PLC0415 - start-up time
    from sterna.errors import BadHost  # noqa: PLC0415

    settings.host = host or settings.host
    if forget:
        tokens.file_of(settings.client().url).unlink(missing_ok=True)
        line("forgotten")
        return
    os.environ[tokens.VARIABLE] = tokens.checked(secret("Token"), "what was given")
    client = settings.client()
    if client.is_local:
        raise BadHost(host=client.url, reason="this machine's own socket needs no token")
    me = client.get("/v1/me")
    file = tokens.keep(client.url, os.environ[tokens.VARIABLE])
    line(f"{me['who']} with the role {me['role']} on {me['host']}; kept in {file}")
