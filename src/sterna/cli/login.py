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


def _service(url: str) -> str:
    """Of the host at `url`. UsageError for an address, of which no realm knows a service."""
    from ipaddress import ip_address  # noqa: PLC0415 - start-up time
    from urllib.parse import urlsplit  # noqa: PLC0415

    from sterna.cli.tickets import CLASS  # noqa: PLC0415

    name = urlsplit(url).hostname or ""
    try:
        ip_address(name)
    except ValueError:
        return f"{CLASS}/{name}"
    problem = f"{name} is an address. Name its service: --service {CLASS}/HOST.EXAMPLE.COM"
    raise click.UsageError(problem, click.get_current_context())


@click.command(
    "login",
    cls=Command,
    examples=(
        "sterna login host-b",
        "sterna --host https://192.0.2.7:7443 --certificate b.pem login",
        "kinit alice && sterna login host-b --kerberos --service sterna/host-b.example.com",
    ),
)
@click.argument("host", required=False)
@click.option("--kerberos", is_flag=True, help="Show your Kerberos ticket instead of a token.")
@click.option(
    "--service",
    metavar="NAME",
    help="Of the host in the realm. Default: sterna/ and the host of its address.",
)
@click.option("--forget", is_flag=True, help="Throw away what is kept.")
@click.pass_obj
def login(
    settings: Settings, host: str | None, kerberos: bool, service: str | None, forget: bool
) -> None:
    """Keep an API token of a host for later commands.

    It is asked for, or read from standard input, and tried. It never belongs on a command line.
    With --kerberos what is kept is that your own tickets (kinit) are to be shown.
    """
    from sterna.cli.output import line  # noqa: PLC0415 - start-up time
    from sterna.errors import BadHost  # noqa: PLC0415

    settings.host = host or settings.host
    if forget:
        tokens.file_of(settings.client().url).unlink(missing_ok=True)
        line("forgotten")
        return
    if kerberos or service:
        service = service or _service(settings.client().url)
        os.environ[tokens.VARIABLE] = f"{tokens.TICKET}{service}"
    else:
        os.environ[tokens.VARIABLE] = tokens.checked(secret("Token"), "what was given")
    client = settings.client()
    if client.is_local:
        raise BadHost(host=client.url, reason="this machine's own socket needs no token")
    me = client.get("/v1/me")
    file = tokens.keep(client.url, os.environ[tokens.VARIABLE])
    line(f"{me['who']} with the role {me['role']} on {me['host']}; kept in {file}")
