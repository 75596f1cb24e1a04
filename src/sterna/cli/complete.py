"""Completion of names that only the daemon knows. Quick and silent: when the daemon is away, slow
or refuses, there is simply nothing to offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from sterna.cli.command import Settings

PATIENCE_S = 0.5  # longer than this a person has typed the name themselves

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _completer(path: str, names: Callable[[Any], Iterable[str]]) -> Completer:
    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            settings = context.find_object(Settings) or Settings()
            answer = settings.client(PATIENCE_S).get(path, wait_s=PATIENCE_S)
            return sorted(name for name in names(answer) if name.startswith(incomplete))
        except Exception:  # noqa: BLE001 - a completion never disturbs the line being typed
            return []

    return complete


def _names(answer: Any) -> Iterable[str]:
    return (str(item["name"]) for item in answer)


def _running(answer: Any) -> Iterable[str]:
    final = ("succeeded", "warned", "failed", "cancelled", "partial")
    return (str(item["id"]) for item in answer if item["state"] not in final)


vms = _completer("/v1/vms", _names)
hosts = _completer("/v1/hosts", _names)
others = _completer(
    "/v1/hosts", lambda answer: (str(item["name"]) for item in answer if item["state"] != "this")
)
operations = _completer("/v1/operations", lambda answer: (str(item["id"]) for item in answer))
running_operations = _completer("/v1/operations", _running)
switches = _completer(
    "/v1/switches", lambda answer: (str(item["switch"]["name"]) for item in answer)
)
pools = _completer("/v1/pools", lambda answer: (str(item["pool"]["name"]) for item in answer))
