"""What would cut off guests that run is refused before a switch is changed."""

from __future__ import annotations

import asyncio

import pytest

from sterna.errors import SwitchWouldCut
from sterna.host.registry import Switches
from sterna.model.host import Switch, SwitchChanges, SwitchFacts


class _Network:
    def __init__(self, mtu):
        self.mtu = mtu

    async def facts(self, switch):
        return SwitchFacts(switch=switch, vlans=True, problem="", mtu=9000)

    async def has_link(self, _name):
        return True

    async def mtu_of(self, _name):
        return self.mtu


def _refuse(mtu):
    switches = Switches.__new__(Switches)
    switches._network = _Network(mtu)
    old = Switch(name="lan", type="external", uplink="eth1")
    new = Switch(name="lan", type="external", uplink="eth2")
    asyncio.run(switches._refuse_cut(old, new, "web"))


def test_an_uplink_that_passes_less_is_refused_under_guests():
    with pytest.raises(SwitchWouldCut, match="9000 bytes, and eth2 passes 1500"):
        _refuse(1500)


def test_an_uplink_that_passes_as_much_is_not():
    _refuse(9000)


def test_two_changes_at_once_both_take_effect(tmp_path):
    class Network(_Network):
        async def change(self, _old, _new):
            await asyncio.sleep(0.05)

    async def both():
        switches = Switches(tmp_path, Network(9000), host="hv-a")
        switches._switches["lan"] = Switch(name="lan", type="external", uplink="eth1")
        await asyncio.gather(
            switches.change("lan", SwitchChanges(mtu=9000), lambda _: ()),
            switches.change("lan", SwitchChanges(uplink="eth2"), lambda _: ()),
        )
        return switches.get("lan")

    lan = asyncio.run(both())
    assert (lan.mtu, lan.uplink) == (9000, "eth2")
