"""Where a VM may be and beside whom, as options: of `vm create` and `vm set`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from sterna.cli import values

OPTIONS = (
    click.option(
        "--affinity",
        type=values.names,
        metavar="GROUP,...",
        help="Keep it on one host with the VMs of this group, if that can be. none: it has no group.",
    ),
    click.option(
        "--anti-affinity",
        type=values.names,
        metavar="GROUP,...",
        help="Keep it on another host than every VM of this group.",
    ),
    click.option(
        "--allowed-hosts",
        type=values.names,
        metavar="HOST,...",
        help="It moves to these hosts only. none: to every host.",
    ),
    click.option(
        "--priority",
        type=int,
        metavar="N",
        help="0 to 100; the higher go first when a host is emptied. Default of a VM: 50.",
    ),
)
NAMES = ("affinity", "anti_affinity", "allowed_hosts", "priority")


def placed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options, by NAMES."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
