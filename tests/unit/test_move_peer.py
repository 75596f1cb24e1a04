"""Another host's answers that make no sense: an error that names it, never a surprise."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from operations_rig import in_loop
from sterna.errors import BadSpec
from sterna.model.vm import OwnershipState
from sterna.move.peer import Peer


def peer(answer: Any) -> Peer:
    transport = httpx2.MockTransport(lambda _request: httpx2.Response(200, json=answer))
    return Peer("b", "https://b", httpx2.AsyncClient(base_url="https://b", transport=transport))


@in_loop
@pytest.mark.parametrize(
    "answer", [{}, [], {"state": "mine", "epoch": 1}, {"state": "", "epoch": "many"}]
)
async def test_a_standing_that_makes_no_sense_is_no_standing(answer: Any) -> None:
    with pytest.raises(BadSpec, match="answer of b"):
        await peer(answer).standing("id-web")


@in_loop
async def test_a_standing_is_read() -> None:
    owned = peer({"state": "owned", "epoch": 3})
    assert await owned.standing("id-web") == (OwnershipState.OWNED, 3)
    assert await peer({"state": "", "epoch": 0}).standing("id-web") == (None, 0)


@in_loop
@pytest.mark.parametrize(
    ("answer", "is_well"),
    [({"answers": True}, True), ({"answers": "no"}, False), ({}, False), (7, False)],
)
async def test_a_qemu_is_well_only_if_its_host_says_so(answer: Any, is_well: bool) -> None:
    assert await peer(answer).answers("op") is is_well
