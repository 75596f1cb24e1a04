"""`sterna user` and `sterna token`: who may do what on a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sterna.cli import values
from sterna.cli.command import Settings, command, group

ROLES = click.Choice(["viewer", "operator", "migrator", "admin"])
_role = click.option("--role", type=ROLES, help="viewer < operator < migrator < admin.")
_needed = click.option(
    "--role", type=ROLES, required=True, help="viewer < operator < migrator < admin."
)
_tag = click.option("--tag", metavar="TAG", help="Only for VMs with this tag.")
_certificate = click.option(
    "--client-certificate",
    "certificates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Who shows this certificate (PEM) is this user. May be repeated.",
)

_kerberos = click.option(
    "--kerberos",
    metavar="NAME@REALM",
    help="Whose Kerberos tickets are this user's. With set, none: nobody's.",
)

user = group(
    "user",
    "People and programs that this host lets in.",
    "sterna user create alice --role operator",
    "sterna user set alice --role migrator --tag shop",
    "sterna user passwd alice",
)
token = group(
    "token",
    "API tokens: for programs, with a role and an end.",
    "sterna token create ci --role operator --tag ci --expires 30d",
    "sterna token revoke ci",
)


@command(user, "create", "sterna user create alice --role operator", "sterna user create backup --role viewer --client-certificate backup.pem")  # fmt: skip
@click.argument("name")
@_needed
@_tag
@_certificate
@_kerberos
@click.pass_obj
def create(  # noqa: PLR0913, PLR0917 - what makes a user
    settings: Settings,
    name: str,
    role: str,
    tag: str | None,
    certificates: tuple[Path, ...],
    kerberos: str | None,
) -> None:
    """Let a person in by password or Kerberos, or a program by certificate.

    The password is asked for, or read as a line from standard input. With a certificate or tickets there is none.
    """
    body: dict[str, Any] = {"name": name, "role": role}
    if tag:
        body["tag"] = tag
    if certificates:
        body["certificates"] = [file.read_text() for file in certificates]
    if kerberos:
        body["kerberos"] = kerberos
    if not certificates and not kerberos:
        body["password"] = _password(name)
    _say(settings, settings.client().post("/v1/users", body), f"{name} is let in as {role}")


@command(user, "list", "sterna user list", "sterna user list -o json")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List users and what they may do."""
    from sterna.cli.output import document, note, table  # noqa: PLC0415 - start-up time

    users = settings.client().get("/v1/users")
    if settings.is_json:
        document(users)
    elif not users:
        note("no users; root uses the Unix socket")
    else:
        rows = [(u["name"], u["role"], u["tag"], _proofs(u), u["created"][:10]) for u in users]
        table(("NAME", "ROLE", "TAG", "PROVEN BY", "SINCE"), rows)


@command(user, "set", "sterna user set alice --role migrator", "sterna user set alice --tag none")
@click.argument("name")
@_role
@click.option("--tag", metavar="TAG", help="Only for VMs with this tag. none: for all.")
@_certificate
@_kerberos
@click.pass_obj
def set_(  # noqa: PLR0913, PLR0917 - what can change
    settings: Settings,
    name: str,
    role: str | None,
    tag: str | None,
    certificates: tuple[Path, ...],
    kerberos: str | None,
) -> None:
    """Change what a user may do. It must log in again."""
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    body: dict[str, Any] = {"role": role} if role else {}
    if tag is not None:
        body["tag"] = "" if tag == "none" else tag
    if certificates:
        body["certificates"] = [file.read_text() for file in certificates]
    if kerberos is not None:
        body["kerberos"] = "" if kerberos == "none" else kerberos
    if not body:
        problem = "Say what shall change: --role, --tag, --client-certificate or --kerberos."
        raise click.UsageError(problem, click.get_current_context())
    made = settings.client().patch(f"/v1/users/{segment(name)}", body)
    _say(settings, made, f"{name} is {made['role']} now")


@command(user, "passwd", "sterna user passwd alice", "pass show sterna/alice | sterna user passwd alice")  # fmt: skip
@click.argument("name")
@click.pass_obj
def passwd(settings: Settings, name: str) -> None:
    """Set another password; all sessions of the user end.

    It is asked for, or read as a line from standard input.
    """
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    client = settings.client()
    made = client.put(f"/v1/users/{segment(name)}/password", {"password": _password(name)})
    _say(settings, made, f"{name} has a new password")


@command(user, "delete", "sterna user delete alice")
@click.argument("name")
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Let a user in no more, at once."""
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    settings.client().delete(f"/v1/users/{segment(name)}")
    _say(settings, {"deleted": name}, f"{name} is let in no more")


@command(token, "create", "sterna token create ci --role operator --expires 30d", "sterna token create shop --role migrator --tag shop")  # fmt: skip
@click.argument("name")
@_needed
@_tag
@click.option(
    "--expires", type=values.duration, metavar="TIME", help="How long it lasts. Default: 90d."
)
@click.pass_obj
def create_token(
    settings: Settings, name: str, role: str, tag: str | None, expires: float | None
) -> None:
    """Make an API token and print it, this once.

    The host keeps only a hash of it. Give it to `sterna login`, or as $STERNA_TOKEN.
    """
    from sterna.cli.output import document, line, note  # noqa: PLC0415 - start-up time

    wishes = {"name": name, "role": role, "tag": tag, "expires_s": expires}
    body = {key: value for key, value in wishes.items() if value is not None}
    made = settings.client().post("/v1/tokens", body)
    if settings.is_json:
        document(made)
        return
    note(f"a secret, until {made['expires'][:16]}Z; use: sterna login, or $STERNA_TOKEN")
    line(made["token"])


@command(token, "list", "sterna token list", "sterna token list -o json")
@click.pass_obj
def list_tokens(settings: Settings) -> None:
    """List tokens and what they allow; those that have ended, too."""
    from sterna.cli.output import document, note, table  # noqa: PLC0415 - start-up time

    tokens = settings.client().get("/v1/tokens")
    if settings.is_json:
        document(tokens)
    elif not tokens:
        note("no tokens")
    else:
        rows = [(t["name"], t["role"], t["tag"], t["expires"][:16] + "Z", t["by"]) for t in tokens]
        table(("NAME", "ROLE", "TAG", "UNTIL", "MADE BY"), rows)


@command(token, "revoke", "sterna token revoke ci")
@click.argument("name")
@click.pass_obj
def revoke(settings: Settings, name: str) -> None:
    """Take a token back, at once."""
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    settings.client().delete(f"/v1/tokens/{segment(name)}")
    _say(settings, {"revoked": name}, f"{name} is of no use any more")


def _password(name: str) -> str:
    """Never from the command line: others can read that of every process."""
    import sys  # noqa: PLC0415 - start-up time

    from sterna.cli.login import secret  # noqa: PLC0415

    first = secret(f"Password of {name}")
    if sys.stdin.isatty() and secret("Again") != first:
        raise click.UsageError("The two are not the same.", click.get_current_context())
    return first


def _proofs(row: dict[str, Any]) -> str:
    found = ["password"] if row["has_password"] else []
    found += [f"tickets of {row['kerberos']}"] if row["kerberos"] else []
    count = len(row["certificates"])
    return ", ".join([*found, *([f"{count} certificate{'s' * (count > 1)}"] if count else [])])


def _say(settings: Settings, made: Any, text: str) -> None:
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    if settings.is_json:
        document(made)
    else:
        line(text)
