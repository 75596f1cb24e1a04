"""Entry of the command `sterna`: finds the command, runs it, turns every outcome into an exit code
and every error into two lines: what is wrong, and the fix.

Start-up is part of the promise (under 100 ms of CPU): a module is imported when its command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from sterna.cli.command import LazyGroup, Settings

LAZY = {
    "vm": ("sterna.cli.vm:vm", "Create, run and look at virtual machines."),
    "move": ("sterna.cli.move:move", "Move VMs to another host, or disks of one to other pools."),
    "check": ("sterna.cli.check:check", "What a move would meet: every finding, and its fix."),
    "op": ("sterna.cli.op:op", "Follow, cancel and read about long-running operations."),
    "host": (
        "sterna.cli.host:host",
        "This host and the hosts that it knows: look, set, empty for maintenance.",
    ),
    "switch": ("sterna.cli.switch:switch", "Virtual switches that VMs are plugged into."),
    "pool": ("sterna.cli.pool:pool", "Places for the disks of VMs."),
    "disk": ("sterna.cli.disk:disk", "Check the images of disks; copies that moves have kept."),
    "kerberos": (
        "sterna.cli.kerberos:kerberos",
        "Look what is wrong with Kerberos between this host and others.",
    ),
    "lab": ("sterna.cli.lab:lab", "Hosts on this one machine, to try everything."),
    "guardian": (
        "sterna.cli.guardian:guardian",
        "Which hosts open the keys of VMs with a TPM.",
    ),
    "user": ("sterna.cli.people:user", "People and programs that this host lets in."),
    "token": ("sterna.cli.people:token", "API tokens: for programs, with a role and an end."),
    "login": ("sterna.cli.login:login", "Keep an API token of a host for later commands."),
    "audit": ("sterna.cli.audit:audit", "Who did what on this host, and whether that was changed."),
    "completion": ("sterna.cli.completion:completion", "Print the completion script of a shell."),
}
INTERRUPTED = 130  # as shells report a command that was ended by Ctrl-C
BROKEN_PIPE = 141  # the reader of our output went away


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from sterna import __version__  # noqa: PLC0415 - start-up time

        click.echo(f"sterna {__version__}")
        context.exit()


sterna = LazyGroup(
    "sterna",
    lazy=LAZY,
    help="Run virtual machines on QEMU/KVM hosts and move them between hosts while they run.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Show the version and exit.",
        )
    ],
    examples=(
        "sterna vm list",
        "sterna vm create web --memory 2GiB --disk size=20GiB --nic switch=lan --start",
        "sterna move web host-b",
        "sterna --host host-b op list -o json",
    ),
)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    settings = Settings()
    try:
        result: Any = sterna.main(
            args=list(arguments), prog_name="sterna", standalone_mode=False, obj=settings
        )
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("sterna: interrupted\n")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort tells the user
        from sterna.cli.failure import report  # noqa: PLC0415 - start-up time

        try:
            return report(error, settings, arguments)
        except BrokenPipeError:
            return _reader_gone()
    return result if isinstance(result, int) else 0


def _reader_gone() -> int:
    """End quietly, as a pipe's reader such as `head` expects."""
    import os  # noqa: PLC0415 - rarely needed

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def main() -> int:
    """The console script."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
