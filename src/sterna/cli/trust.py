"""`sterna host invite`, `join` and what follows: which hosts this one trusts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from sterna.cli import complete, values
from sterna.cli.command import Command, Settings


def _command(name: str, *examples: str) -> Callable[..., Any]:
    return click.command(name, cls=Command, examples=examples)


@_command("invite", "sterna host invite", "sterna host invite --expires 1h")
@click.option(
    "--expires",
    type=values.duration,
    metavar="TIME",
    help="How long the token lasts. Default: 10m.",
)
@click.option(
    "--address",
    metavar="IP",
    help="Of this host, as the other reaches it. Default: its listener's.",
)
@click.pass_obj
def invite(settings: Settings, expires: float | None, address: str | None) -> None:
    """Print a one-time token that pairs another host with this one.

    It is a secret until it has been used or has expired. A restart of sternad ends it.
    """
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    wishes = {"expires_s": expires, "address": address}
    made = settings.client().post(
        "/v1/invitations", {key: one for key, one in wishes.items() if one is not None}
    )
    if settings.is_json:
        document(made)
        return
    line(f"On the other host, until {made['expires']}:")
    line(f"sterna host join {made['token']}")


@_command(
    "join",
    "sterna host join sterna1.WyI…",
    "sterna --host host-b host join - < token",
)
@click.argument("token")
@click.option(
    "--address",
    metavar="IP",
    help="Of this host, as the other reaches it. Default: its listener's.",
)
@click.pass_obj
def join(settings: Settings, token: str, address: str | None) -> None:
    """Let this host and the one that made TOKEN trust each other.

    - reads the token from standard input. May be repeated after an interruption.
    """
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    text = sys.stdin.read(4096).strip() if token == "-" else token  # noqa: S105 - no password
    body = {"token": text, **({"address": address} if address else {})}
    made = settings.client().post("/v1/peers", body)
    if settings.is_json:
        document(made)
    else:
        line(f"{made['name']} and this host trust each other")


@_command("distrust", "sterna host distrust host-b")
@click.argument("name", metavar="HOST", shell_complete=complete.hosts)
@click.pass_obj
def distrust(settings: Settings, name: str) -> None:
    """Trust a host no more, at once.

    Its connections end, and moves to it and from it are undone. Do the same there, if that host is still yours.
    """
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    done = settings.client().delete(f"/v1/peers/{segment(name)}")
    if settings.is_json:
        document(done)
        return
    line(f"{name} is not trusted any more")
    for operation in done["operations"]:
        line(f"undone: sterna op show {operation}")


@_command("rotate", "sterna host rotate", "sterna host rotate --force")
@click.option("--force", is_flag=True, help="Even if a host that trusts this one cannot be told.")
@click.pass_obj
def rotate(settings: Settings, force: bool) -> None:
    """Give this host a new key and certificate, without a pause for anybody.

    All hosts that trust it are told first. May be repeated after an interruption.
    """
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    done = settings.client().post("/v1/host:rotate", {"force": force})
    if settings.is_json:
        document(done)
        return
    line(f"this host has a new certificate, until {done['ends'][:10]}")
    for name in done["not_told"]:
        line(f"{name} was not told: pair it again")


@_command("set-address", "sterna host set-address host-b https://192.0.2.9:7443")
@click.argument("name", metavar="HOST", shell_complete=complete.hosts)
@click.argument("url")
@click.pass_obj
def set_address(settings: Settings, name: str, url: str) -> None:
    """Say where a host that is trusted is now. Who it is, its certificate proves."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    made = settings.client().patch(f"/v1/peers/{segment(name)}", {"url": url})
    if settings.is_json:
        document(made)
    else:
        line(f"{name} is at {made['url']}")


@_command("set-role", "sterna host set-role host-b none", "sterna host set-role host-b admin")
@click.argument("name", metavar="HOST", shell_complete=complete.hosts)
@click.argument("role", type=click.Choice(["none", "viewer", "operator", "migrator", "admin"]))
@click.pass_obj
def set_role(settings: Settings, name: str, role: str) -> None:
    """Say what whoever speaks for a trusted host may do here.

    none: VMs move between the two hosts, and that is all. admin, as after pairing: everything.
    """
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    made = settings.client().patch(f"/v1/peers/{segment(name)}", {"role": role})
    if settings.is_json:
        document(made)
    else:
        line(f"{name} has {'no role' if role == 'none' else f'the role {role}'} here")


COMMANDS = (invite, join, set_address, set_role, rotate, distrust)
