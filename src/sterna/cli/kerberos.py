"""`sterna kerberos`: what is wrong with Kerberos here, and the command that mends it."""

from __future__ import annotations

import click

from sterna.cli.command import Settings, command, group

kerberos = group(
    "kerberos",
    "Look what is wrong with Kerberos between this host and others.",
    "kinit alice && sudo -E sterna kerberos check host-b.example.com",
)


@command(
    kerberos,
    "check",
    "sterna kerberos check",
    "sterna kerberos check host-b.example.com",
    "sterna kerberos check host-b.example.com -o json | jq -r '.findings[].commands[]'",
)
@click.argument("host", metavar="[HOST]", required=False)
@click.option(
    "--service",
    default="sterna",
    show_default=True,
    metavar="CLASS",
    help="Class of the service names.",
)
@click.option(
    "--keytab",
    metavar="FILE",
    default="/etc/krb5.keytab",
    show_default=True,
    help="The keys of this host.",
)
@click.option(
    "--here", metavar="NAME", help="Full name of this host.  [default: as the system says]"
)
@click.pass_obj
def check(
    settings: Settings, /, host: str | None, service: str, keytab: str, here: str | None
) -> int:
    """Try all that a move to HOST in your name would need of Kerberos.

    Without HOST: what this host alone needs. With your own ticket (kinit) and this host's keytab, which only root may read: `sudo -E` keeps your
    ticket. Nothing is changed. Every reason is told apart, and comes with the command that mends it, for the
    kind of realm that was found. Exit code: 0 all is well, 10 warnings, 3 blockers.
    """
    from socket import getfqdn  # noqa: PLC0415 - start-up time

    from sterna.cli.output import document, line  # noqa: PLC0415
    from sterna.kerberos.examine import Question, examine  # noqa: PLC0415

    question = Question(here=here or getfqdn(), there=host or "", service=service, keytab=keytab)
    found = list(examine(question))
    is_blocked = any(one.severity == "blocker" for one in found)
    outcome = "blocked" if is_blocked else "warned" if found else "well"
    if settings.is_json:
        from dataclasses import asdict  # noqa: PLC0415

        document({"outcome": outcome, "findings": [asdict(one) for one in found]})
    else:
        for one in found:
            line(f"{one.severity}: {one.finding} ({one.id})")
            for each in one.commands:
                line(f"    {each}")
        what = f"a move to {host} in your name" if host else "what others show to this host"
        if not is_blocked:
            line(f"{question.here}: Kerberos serves for {what}")
    return {"well": 0, "warned": 10, "blocked": 3}[outcome]
