"""What went over the migration networks, by the counters of a host's own network cards."""

from __future__ import annotations

from pathlib import Path

from sterna.lab.hosts import Host

_RECEIVED, _SENT = 0, 8  # columns of /proc/net/dev (proc(5)), bytes


def on_migration(host: Host) -> int:
    """Bytes that this host has sent and received so far on all its migration networks."""
    return sum(sum(both) for both in _cards(host).values())


def sent_by_card(host: Host) -> dict[str, int]:
    """Bytes that it has sent, for each card."""
    return {card: sent for card, (_, sent) in _cards(host).items()}


def _cards(host: Host) -> dict[str, tuple[int, int]]:
    process = host.process
    assert process is not None, f"sternad on {host.name} has ended"
    counted = {}
    for line in Path(f"/proc/{process.pid}/net/dev").read_text().splitlines():
        card, colon, numbers = line.partition(":")
        if colon and card.strip().startswith("mig"):
            columns = numbers.split()
            counted[card.strip()] = (int(columns[_RECEIVED]), int(columns[_SENT]))
    return counted
