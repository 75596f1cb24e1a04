"""From which address to which a channel goes."""

from __future__ import annotations

import pytest

from sterna.carrier.facts import Endpoint
from sterna.move.relayed import routes

OURS = ("192.0.2.11", "198.51.100.11", "2001:db8:1::11")


@pytest.mark.parametrize(
    ("there", "local"),
    [
        ("192.0.2.12", "192.0.2.11"),
        ("198.51.100.200", "198.51.100.11"),
        ("2001:db8:1::12", "2001:db8:1::11"),
        ("203.0.113.5", ""),
        ("2001:db8:2::5", ""),
    ],
)
def test_a_channel_goes_from_the_address_on_its_network(there, local):
    (route,) = routes(OURS, [Endpoint(there, 4000)])
    assert (route.local, route.endpoint) == (local, Endpoint(there, 4000))


def test_there_is_a_channel_for_each_endpoint_and_the_kernel_chooses_where_we_know_nothing():
    there = [Endpoint("192.0.2.12", 1), Endpoint("198.51.100.12", 2)]
    assert [route.endpoint for route in routes((), there)] == there
    assert {route.local for route in routes((), there)} == {""}
