"""What went over the migration networks, by the counters of a host's own network cards."""

from __future__ import annotations

import subprocess

from sterna.lab.hosts import Host

_RX, _TX = 0, 8  # columns of /proc/net/dev (proc(5)): bytes received, bytes sent


def on_migration(host: Host) -> int:
    """Bytes that this host has sent and received so far on all its migration networks."""
    return sum(by_card(host).values())


def by_card(host: Host) -> dict[str, int]:
    """The same, for each card."""
    done = subprocess.run(
        host.command(["cat", "/proc/net/dev"]), capture_output=True, text=True, check=True
    )
    counted = {}
    for line in done.stdout.splitlines():
        card, colon, numbers = line.partition(":")
        if colon and card.strip().startswith("mig"):
            columns = numbers.split()
            counted[card.strip()] = int(columns[_RX]) + int(columns[_TX])
    return counted
