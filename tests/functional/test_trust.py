"""Hosts that begin to trust each other, go on with new keys, and end it; by the commands that users type."""

from __future__ import annotations

import json

import pytest

from checking import Administrator, make

pytestmark = pytest.mark.functional


def test_the_lab_is_paired_and_moves(lab):
    here, there = lab.hosts
    admin = Administrator(here)
    print(admin.run("sterna host list"))
    print(admin.run(f"sterna --host {there.name} host list"))
    make(here)
    admin.moves("tern", there)
