"""`sternad` of a host that is odd in some way, as the JSON in ODD says.

    clock    its wall clock is so many seconds ahead
    version  it says that it is this version of Sterna
    api      it says that it speaks this API
    lacks    paths of its API that it does not have, as of an older version
    blind    ids of blockers that it passes over: a move that a check forbids is tried all the same

It is the real daemon otherwise.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from sterna import clock, daemon
from sterna.api.routes import peer
from sterna.checks import registry
from sterna.model.check import Check
from sterna.move.berth import Berth

ODD = json.loads(os.environ.get("ODD", "{}"))


def later(seconds: float) -> str:
    when = datetime.now(UTC) + timedelta(seconds=seconds + ODD["clock"])
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def be_blind(ids: Iterable[str]) -> None:
    blockers, problems = registry.blockers, Berth.problems

    def seen(found: Iterable[Check]) -> list[Check]:
        return [one for one in blockers(found) if one.id not in ids]

    def told(*args: object) -> Iterator[Exception]:
        return (one for one in problems(*args) if one.code not in ids)  # type: ignore[arg-type]

    registry.blockers = seen
    Berth.problems = told  # type: ignore[assignment, method-assign]


if "clock" in ODD:
    clock.later = later
if "version" in ODD:
    daemon.__version__ = ODD["version"]
if "api" in ODD:
    daemon.API_VERSION = ODD["api"]
if "lacks" in ODD:
    peer.router.routes = [one for one in peer.router.routes if one.path not in ODD["lacks"]]  # type: ignore[attr-defined]
if "blind" in ODD:
    be_blind(ODD["blind"])

if __name__ == "__main__":
    sys.exit(daemon.main())
