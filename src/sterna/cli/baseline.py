"""`sterna host baseline`: the processor that several hosts share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Command, Settings


@click.command(
    "baseline",
    cls=Command,
    short_help="Show the processor that several hosts share.",
    examples=(
        "sterna host baseline",
        "sterna host baseline host-a host-b",
        "sterna host baseline host-a host-b -o json | jq .features",
    ),
)
@click.argument("hosts", metavar="[HOST]...", nargs=-1, shell_complete=complete.hosts)
@click.pass_obj
def baseline(settings: Settings, /, hosts: tuple[str, ...]) -> None:
    """Show what all of these hosts can give their guests as a processor.

    A VM that has no more than that moves between them while it runs. Without HOST: this host and
    all that it knows.
    """
    from sterna.cli.output import document, fields, line, table  # noqa: PLC0415 - start-up time

    found = settings.client().get("/v1/baseline", {"host": list(hosts)} if hosts else None)
    if settings.is_json:
        document(found)
        return
    rows = [
        (name, found["levels"][name], found["accels"][name], found["vendors"][name],
         ", ".join(found["beyond"][name]))
        for name in found["hosts"]
    ]  # fmt: skip
    table(("HOST", "LEVEL", "ACCEL", "VENDOR", "MORE THAN ALL SHARE"), rows)
    line()
    fields([
        ("shared level", found["level"] or "none"),
        ("and features", ", ".join(found["features"])),
        ("problems", list(_problems(found))),
    ])  # fmt: skip
    if found["level"]:
        others = "".join(f" --share-with {name}" for name in hosts)
        line()
        line(f"To give it to a VM: sterna vm set VM --cpu-compat shared{others}")


def _problems(found: dict[str, Any]) -> Iterator[str]:
    accels: dict[str, str] = found["accels"]
    if len(set(accels.values())) > 1:
        yield "some run guests under kvm and some under tcg: a running VM stays with one kind"
    makers = {found["vendors"][name] for name, accel in accels.items() if accel == "kvm"}
    if len(makers) > 1:
        yield (
            f"processors of {' and '.join(sorted(makers))}: a running VM stays with those of one "
            f"maker"
        )
