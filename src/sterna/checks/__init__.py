"""Every reason why a move would fail or hurt, found before it begins.

A check is a small pure function over a `Question` (facts.py), registered with its id, its severity
and what it makes sure of (registry.py). There is a module for each area; to import the package
registers all of them.
"""

from __future__ import annotations

from sterna.checks import (
    hosts,
    machine,
    memory,
    network,
    placement,
    processor,
    state,
    storage,
    trust,
)

__all__ = [
    "hosts",
    "machine",
    "memory",
    "network",
    "placement",
    "processor",
    "state",
    "storage",
    "trust",
]
