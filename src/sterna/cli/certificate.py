"""This machine's certificate, from the files of its own sternad. Works while the daemon is down;
never asks a network, because an answer from there would prove nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sterna.cli.command import Settings
from sterna.cli.output import document
from sterna.cli.target import STATE_DIR, daemon_settings
from sterna.errors import BadConfig, NotAllowed


def show_own(settings: Settings) -> None:
    """Print the PEM text. Raises BadConfig if this machine has no certificate yet."""
    if settings.host and not settings.host.startswith("unix://"):
        raise click.UsageError(
            "a certificate is printed on its own host: run it there, without --host",
            click.get_current_context(),
        )
    daemon = daemon_settings()
    file = Path(daemon.get("state_dir", STATE_DIR)) / "identity" / "certificate.pem"
    try:
        pem = file.read_text()
    except PermissionError as error:
        raise NotAllowed(
            what=f"reading {file}", reason="permission denied", fix="Run the command with sudo"
        ) from error
    except OSError as error:
        raise BadConfig(
            path=file,
            reason="this machine has no certificate yet; it is made when sternad starts",
        ) from error
    if settings.is_json:
        document({"path": str(file), "certificate": pem})
    else:
        sys.stdout.write(pem)
