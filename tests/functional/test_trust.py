"""Hosts that begin to trust each other, go on with new keys, and end it; by the commands that users type."""

from __future__ import annotations

import json
import time

import pytest

from checking import Administrator
from sterna.clock import monotonic

pytestmark = pytest.mark.functional
WAIT_S = 60


def other_state(host, vm):
    return next((one["state"] for one in host.client.get("/v1/vms") if one["name"] == vm), None)


def until(what, within_s=WAIT_S):
    deadline = monotonic() + within_s
    while not (found := what()):
        assert monotonic() < deadline
        time.sleep(0.05)
    return found


def under_way(host, phase):
    return [
        one
        for one in host.client.get("/v1/operations")
        if one["kind"] == "move" and one["phase"] == phase and one["ended"] is None
    ]


@pytest.fixture
def hosts(lab):
    yield lab.hosts
    here, there = lab.hosts
    known = [[row["name"] for row in host.client.get("/v1/hosts")] for host in lab.hosts]
    if known != [[here.name, there.name], [there.name, here.name]]:
        for one, other in ((here, there), (there, here)):
            Administrator(one).ask(f"sterna host distrust {other.name}")
        here.pair(there)


def test_print(hosts):
    here, there = hosts
    print(json.dumps(here.client.get("/v1/operations"))[:600])
