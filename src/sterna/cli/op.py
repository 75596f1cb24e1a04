"""`sterna op`: operations, the long-running actions of a host. An id may be shortened."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from sterna.cli import complete
from sterna.cli.command import Settings, command, group
from sterna.cli.values import duration, limit

if TYPE_CHECKING:
    from sterna.client import Client

KINDS = click.Choice(
    ["move", "receive", "stop", "storage-move", "checkpoint", "apply", "merge", "save", "restore", "fenced",
     "export", "import"]
)  # fmt: skip
STATES = click.Choice(
    ["queued", "running", "cancelling", "unknown", "succeeded", "warned", "failed", "cancelled", "partial"]
)  # fmt: skip

op = group(
    "op",
    "Follow, cancel and read about long-running operations.",
    "sterna op list --state running",
    "sterna op wait 3f2a --timeout 10m",
    "sterna op log 3f2a",
    "sterna op resolve 3f2a",
)
any_operation = click.argument("operation", metavar="ID", shell_complete=complete.operations)
live_operation = click.argument(
    "operation", metavar="ID", shell_complete=complete.running_operations
)


CANCELLED = 7  # DESIGN: exit codes
WHOLE = 36  # characters of an id


def _path(client: Client, operation: str) -> str:
    """Where the operation is whose id begins with `operation`, if that is only one."""
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    if len(operation) < WHOLE:
        known = [str(one["id"]) for one in client.get("/v1/operations", {"limit": 1000})]
        meant = [one for one in known if one.startswith(operation)]
        if len(meant) > 1 and operation not in meant:
            raise click.UsageError(
                f"{operation!r} is how {len(meant)} operations begin, such as "
                f"{meant[0]} and {meant[1]}; give more of the one you mean",
                click.get_current_context(),
            )
        operation = meant[0] if len(meant) == 1 else operation
    return f"/v1/operations/{segment(operation)}"


@command(op, "list", "sterna op list", "sterna op list --vm web --kind move --limit 5 -o json")
@click.option("--vm", metavar="VM", shell_complete=complete.vms, help="Only of this VM.")
@click.option("--kind", type=KINDS, help="Only of this kind.")
@click.option("--state", type=STATES, help="Only in this state.")
@click.option("--limit", type=click.IntRange(1), default=50, help="At most so many. Default: 50.")
@click.pass_obj
def list_(
    settings: Settings, vm: str | None, kind: str | None, state: str | None, limit: int
) -> None:
    """List operations, the newest first."""
    from sterna.cli import op_view  # noqa: PLC0415 - start-up time

    query = {"vm": vm, "kind": kind, "state": state, "limit": limit}
    op_view.many(settings, settings.client().get("/v1/operations", query))


@command(op, "show", "sterna op show 3f2a")
@any_operation
@click.pass_obj
def show(settings: Settings, operation: str) -> None:
    """Show an operation: its steps, progress and result."""
    from sterna.cli import op_view  # noqa: PLC0415 - start-up time

    client = settings.client()
    op_view.one(settings, client.get(_path(client, operation)))


@command(
    op,
    "wait",
    "sterna op wait 3f2a",
    'sterna op wait 3f2a --timeout 10m || echo "not done: exit code $?"',
)
@live_operation
@click.option(
    "--timeout", type=duration, metavar="DURATION", help="Wait at most so long, such as 90s or 10m."
)
@click.pass_obj
def wait(settings: Settings, operation: str, timeout: float | None) -> int:
    """Follow an operation to its end; the exit code tells its outcome.

    The exit code is 0 done, 10 done with warnings, 1 failed and undone, 7 cancelled, 11 left
    something behind; after --timeout 8 still running or 9 outcome unknown. Ctrl-C stops the
    waiting, never the operation.
    """
    from sterna.cli import follow  # noqa: PLC0415 - start-up time
    from sterna.cli.progress import display  # noqa: PLC0415

    client = settings.client()
    with follow.Interrupts() as interrupts:
        snapshot = client.get(_path(client, operation))
        with display(settings.is_json) as shown:
            follower = follow.Follower(client, snapshot, shown, interrupts)
            ended = follower.run(timeout_s=timeout)
        return follow.conclude(settings, ended)


@command(op, "cancel", "sterna op cancel 3f2a", "sterna op cancel 3f2a --wait")
@live_operation
@click.option("--wait", "waits", is_flag=True, help="Wait until it is undone.")
@click.pass_obj
def cancel(settings: Settings, operation: str, waits: bool) -> int:
    """Cancel an operation: what it has done so far is undone.

    With --wait the exit code is 7 if it was cancelled, else the operation's own outcome.
    """
    from sterna.cli import follow  # noqa: PLC0415 - start-up time
    from sterna.cli.output import document, line  # noqa: PLC0415

    client = settings.client()
    with follow.Interrupts() as interrupts:
        snapshot = client.post(f"{_path(client, operation)}:cancel")
        if waits:
            return follow.to_end(settings, client, snapshot, interrupts)
    if settings.is_json:
        document(snapshot)
    else:
        line(f"cancelling {snapshot['id']}; wait for it with: sterna op wait {snapshot['id']}")
    return 0


@command(
    op,
    "set",
    "sterna op set 3f2a --bandwidth 200Mbit",
    "sterna op set 3f2a --bandwidth none --max-downtime 500ms",
)
@live_operation
@click.option(
    "--bandwidth",
    type=limit,
    metavar="RATE",
    help="Use at most so much: 100MB (a second), 1Gbit; or none, to lift the limit.",
)
@click.option(
    "--max-downtime", type=duration, metavar="DURATION", help="Longest pause that is aimed for."
)
@click.pass_obj
def set_(
    settings: Settings, operation: str, bandwidth: int | str | None, max_downtime: float | None
) -> None:
    """Change the limits of a move while it is under way."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    if bandwidth is None and max_downtime is None:
        problem = "Say what shall change: --bandwidth, --max-downtime."
        raise click.UsageError(problem, click.get_current_context())
    changes = {
        "bandwidth": bandwidth,
        "max_downtime_ms": None if max_downtime is None else round(max_downtime * 1000),
    }
    client = settings.client()
    given = {key: value for key, value in changes.items() if value is not None}
    snapshot = client.patch(_path(client, operation), given)
    if settings.is_json:
        document(snapshot)
    else:
        line(f"changed {snapshot['id']}; follow it with: sterna op wait {snapshot['id']}")


@command(op, "resolve", "sterna op resolve 3f2a", "sterna op resolve 3f2a --fenced --yes")
@live_operation
@click.option("--fenced", is_flag=True, help="The target is off, and stays off until told.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def resolve(settings: Settings, operation: str, fenced: bool, yes: bool) -> int:
    """Explain a move whose outcome is unknown, or end it with --fenced.

    Without options nothing changes: it says what is known and what each way out would lose. With
    --fenced you declare that the target has no power and will not run the VM before it has heard
    of this; the VM is then taken back and goes on here.
    """
    from sterna.cli import follow, op_view  # noqa: PLC0415 - start-up time
    from sterna.cli.output import note  # noqa: PLC0415
    from sterna.errors import Unconfirmed  # noqa: PLC0415

    client = settings.client()
    path = _path(client, operation)
    doubt = client.get(f"{path}/doubt")
    if not fenced:
        op_view.doubt(settings, doubt)
        return 0
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Unconfirmed(action=f"taking {doubt['vm']} back from {doubt['target']}")
        op_view.ways(doubt)
        if not click.confirm(f"Is {doubt['target']} off, and will it stay off?", err=True):
            note("nothing was changed")
            return CANCELLED
    with follow.Interrupts() as interrupts:
        snapshot = client.post(f"{path}:resolve", {"fenced": True})
        return follow.to_end(settings, client, snapshot, interrupts)


@command(op, "log", "sterna op log 3f2a", "sterna op log 3f2a --after 20 -o json")
@any_operation
@click.option("--after", type=click.IntRange(0), default=0, help="Only lines after this number.")
@click.pass_obj
def log(settings: Settings, operation: str, after: int) -> None:
    """Print the log of an operation; with -o json one line of JSON for each."""
    from sterna.cli import op_view  # noqa: PLC0415 - start-up time

    client = settings.client()
    path = f"{_path(client, operation)}/log"
    while page := client.get(path, {"after": after}):
        for entry in page:
            op_view.log_line(settings, entry)
        after = page[-1]["number"]
