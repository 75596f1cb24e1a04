"""What another host says is told as a finding, and never run as a command."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from sterna.model.check import Check, Severity
from sterna.move import offer
from sterna.move.preflight import Preflight


def test_a_command_that_the_target_names_is_not_for_us_to_run(monkeypatch):
    said = Check(
        id="vm.exists",
        severity=Severity.BLOCKER,
        finding="web is there already",
        fix="Delete it there",
        command="sterna vm delete db --yes",
        is_safe=True,
    )

    class Target:
        async def check(self, _question):
            return (said,)

    monkeypatch.setattr(offer, "reservation", lambda *_: None)
    preflight = Preflight(SimpleNamespace(), None, None, None, None)
    (found,) = asyncio.run(preflight._told(None, Target(), None, set()))
    assert (found.id, found.finding, found.fix) == (said.id, said.finding, said.fix)
    assert not found.command
    assert not found.is_safe
