"""`sterna audit`: who did what on a host."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete, values
from sterna.cli.command import Settings, command, group

BROKEN = 1  # exit code

audit = group(
    "audit",
    "Who did what on this host, and whether that was changed.",
    "sterna audit list --since 1d",
    "sterna audit list --who alice --vm web -o json",
    "sterna audit verify",
    "sterna audit export audit.jsonl",
)


@command(audit, "list", "sterna audit list --since 8h", "sterna audit list --who alice --vm web")
@click.option("--since", type=values.duration, metavar="TIME", help="How far back: 30m, 8h, 7d.")
@click.option(
    "--who", metavar="NAME", help="As it is listed: alice, token:ci, host:hv-b, local:root."
)
@click.option(
    "--vm", metavar="VM", shell_complete=complete.vms, help="As it was named in requests."
)
@click.option("--limit", type=click.IntRange(1, 10000), help="At most so many. Default: 100.")
@click.pass_obj
def list_(settings: Settings, /, since: float | None, **wanted: Any) -> None:
    """List what was changed, asked and refused, the newest first."""
    from sterna.cli.output import document, local_time, note, table  # noqa: PLC0415 - start-up time

    query = {key: value for key, value in wanted.items() if value is not None}
    if since is not None:
        from sterna import clock  # noqa: PLC0415 - start-up time

        query["since"] = clock.later(-since)
    found = settings.client().get("/v1/audit", query)
    if settings.is_json:
        document(found)
        return
    if not found:
        note("nothing is written down")
        return
    headers = ("TIME", "WHO", "FROM", "WHAT", "OUTCOME", "REASON")
    rows = [
        (local_time(e["time"]), _who(e), e.get("from"), _what(e), _outcome(e), e.get("reason"))
        for e in found
    ]
    table(headers, rows)


@command(audit, "verify", "sterna audit verify", "sterna audit verify --expect 4711:9f86d081…")
@click.option(
    "--expect",
    metavar="N:HASH",
    help="What an earlier verify printed: the audit still goes on from there.",
)
@click.pass_obj
def verify(settings: Settings, expect: str | None) -> int:
    """Follow the chain of hashes; name the first line that was changed.

    Note what it prints somewhere else: it alone shows that a chain was not made anew.
    """
    from sterna.cli.output import complaint, document, line  # noqa: PLC0415 - start-up time

    client = settings.client()
    found = client.get("/v1/audit/verdict", wait_s=600)
    if expect and not found["broken"] and not _goes_on(client.text("/v1/audit/lines"), expect):
        found["broken"] = f"line {expect.partition(':')[0]}: it is not the one that was noted"
    if settings.is_json:
        document(found)
    elif found["broken"]:
        complaint(f"sterna: the audit was changed: {found['broken']}")
    else:
        line(f"{found['entries']} lines, all as they were written; the last is")
        line(f"{found['last']}:{found['head']}")
    return BROKEN if found["broken"] else 0


@command(audit, "export", "sterna audit export audit.jsonl", "sterna audit export - | zstd > a.zst")
@click.argument("file", type=click.File("wb"))
@click.pass_obj
def export(settings: Settings, file: Any) -> None:
    """Write all lines to FILE as they are.

    The chain can be followed in them: line N holds as `prev` the SHA-256 of line N-1 without its line end.
    """
    for piece in settings.client().text("/v1/audit/lines"):
        file.write(piece)


def _goes_on(pieces: Any, expect: str) -> bool:
    """Whether the line of that number has that hash."""
    import json  # noqa: PLC0415 - start-up time
    from hashlib import sha256  # noqa: PLC0415

    number, _, wanted = expect.partition(":")
    return any(
        str(json.loads(text).get("n")) == number and sha256(text).hexdigest() == wanted
        for text in b"".join(pieces).splitlines()
    )


def _who(entry: dict[str, Any]) -> str:
    who = str(entry.get("who") or "sternad")
    return f"{who} through {entry['via']}" if entry.get("via") else who


def _what(entry: dict[str, Any]) -> str:
    if "method" not in entry:
        return str(entry.get("text") or entry.get("what"))
    return f"{entry['method']} {entry['path']}"


def _outcome(entry: dict[str, Any]) -> str:
    status = entry.get("status")
    code = entry.get("code")
    return f"{status or 'not known'}{f' {code}' if code else ''}"
