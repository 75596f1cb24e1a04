"""VLANs on real bridges. Where this machine's kernel cannot tag, a QEMU guest's can: see the end."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import guest_python
import pytest
from namespaces import (
    ETHERTYPE,
    EVERYBODY,
    PASSES_S,
    STAYS_AWAY_S,
    A,
    B,
    Namespace,
    frame,
    receive,
    send,
)

from sterna.errors import SwitchUnusable
from sterna.host.network import Network
from sterna.model.host import Switch

pytestmark = [
    pytest.mark.functional,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

LAN = Switch(name="lan", uplink="up0")
TAGGED = 0x8100


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace with the interface `up0` and the other end of its cable, `far0`."""
    namespace = Namespace()
    try:
        namespace.ip("link add up0 type veth peer name far0")
        namespace.ip("link set far0 up")
        yield namespace
    finally:
        namespace.remove()


@pytest.fixture
def vlans(ns: Namespace) -> Namespace:
    """The same, on a kernel that can tag; `far7` and `far8` are VLANs at the far end."""

    async def probe() -> bool:
        network = Network()
        await network.ensure(Switch(name="probe"))
        await network.remove(Switch(name="probe"))
        return bool(network.can_tag)

    if not ns.do(probe):
        pytest.skip("this kernel has no bridge VLAN filtering")
    for vlan in (7, 8):
        ns.ip(f"link add link far0 name far{vlan} type vlan id {vlan}")
        ns.ip(f"link set far{vlan} up")
    return ns


class Wire:
    """Taps on the switch and sockets on the far end; names tell their VLAN."""

    def __init__(self, stack: ExitStack) -> None:
        self.network = Network()
        self._stack = stack

    async def tap(self, name: str, vlan: int | None = None, switch: Switch = LAN) -> int:
        fd = await self.network.open_tap(name, switch, vlan)
        self._stack.callback(os.close, fd)
        return fd

    def far(self, name: str) -> socket.socket:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self._stack.callback(link.close)
        link.bind((name, ETHERTYPE))
        return link


def hears(link: socket.socket, wanted: bytes, seconds: float = PASSES_S) -> bool:
    link.settimeout(seconds)
    try:
        while link.recv(2048) != wanted:
            pass
    except TimeoutError:
        return False
    return True


def wired(namespace: Namespace, work: Callable[[Wire], object]) -> None:
    async def inside() -> None:
        with ExitStack() as stack:
            result = work(Wire(stack))
            assert asyncio.iscoroutine(result)
            await result

    namespace.do(inside)


def test_nics_hear_only_their_own_vlan(vlans: Namespace) -> None:
    async def work(wire: Wire) -> None:
        plain, one = await wire.tap("plain"), await wire.tap("one", 7)
        two, other = await wire.tap("two", 7), await wire.tap("other", 8)
        for number, (sender, hearer, deaf) in enumerate(
            [(one, two, (plain, other)), (plain, None, (one, two, other)), (other, None, (one,))]
        ):
            data = frame(EVERYBODY, A, b"%d" % number)
            send(sender, data)
            assert hearer is None or receive(hearer, data)
            assert not any(receive(tap, data, STAYS_AWAY_S) for tap in deaf)

    wired(vlans, work)


def test_the_uplink_carries_tags_and_the_nics_see_none(vlans: Namespace) -> None:
    async def work(wire: Wire) -> None:
        plain, seven = await wire.tap("plain"), await wire.tap("seven", 7)
        far0, far7, far8 = (wire.far(name) for name in ("far0", "far7", "far8"))
        send(seven, frame(EVERYBODY, A, b"out"))
        assert hears(far7, frame(EVERYBODY, A, b"out"))
        assert not hears(far8, frame(EVERYBODY, A, b"out"), STAYS_AWAY_S)
        send(plain, frame(EVERYBODY, A, b"bare"))
        assert hears(far0, frame(EVERYBODY, A, b"bare"))
        assert not hears(far7, frame(EVERYBODY, A, b"bare"), STAYS_AWAY_S)
        far7.send(frame(EVERYBODY, B, b"in"))
        assert receive(seven, frame(EVERYBODY, B, b"in"))
        assert not receive(plain, frame(EVERYBODY, B, b"in"), STAYS_AWAY_S)
        far8.send(frame(EVERYBODY, B, b"lost"))
        assert not receive(seven, frame(EVERYBODY, B, b"lost"), STAYS_AWAY_S)

    wired(vlans, work)


def test_a_guest_cannot_tag_its_way_into_another_vlan(vlans: Namespace) -> None:
    async def work(wire: Wire) -> None:
        plain, seven, eight = (
            await wire.tap("plain"),
            await wire.tap("seven", 7),
            await wire.tap("eight", 8),
        )
        far8 = wire.far("far8")
        data = frame(EVERYBODY, A, b"hop")
        tagged = data[:12] + TAGGED.to_bytes(2) + (8).to_bytes(2) + data[12:]
        for tap in (plain, seven):
            send(tap, tagged)
            assert not receive(eight, data, STAYS_AWAY_S)
            assert not hears(far8, data, STAYS_AWAY_S)

    wired(vlans, work)


def test_an_address_is_forgotten_in_its_vlan(vlans: Namespace) -> None:
    async def work(wire: Wire) -> None:
        one, two, three = [await wire.tap(name, 7) for name in ("one", "two", "three")]
        send(one, frame(EVERYBODY, A))
        assert receive(three, frame(EVERYBODY, A))
        send(two, frame(A, B, b"known"))
        assert receive(one, frame(A, B, b"known"))
        assert not receive(three, frame(A, B, b"known"), STAYS_AWAY_S)
        await wire.network.forget(LAN, A)
        send(two, frame(A, B, b"sought"))
        assert receive(three, frame(A, B, b"sought"))

    wired(vlans, work)


def test_facts_say_that_vlans_work(vlans: Namespace) -> None:
    async def work(wire: Wire) -> None:
        await wire.network.ensure(LAN)
        facts = await wire.network.facts(LAN)
        assert (facts.vlans, facts.problem) == (True, "")

    wired(vlans, work)


def test_a_strange_bridge_keeps_vlans_apart_only_if_it_did_so_before(vlans: Namespace) -> None:
    vlans.ip("link add br0 type bridge")
    vlans.ip("link set br0 up")
    theirs = Switch(name="office", bridge="br0")

    async def work(wire: Wire) -> None:
        with pytest.raises(SwitchUnusable, match="br0 was not made by Sterna and does not keep"):
            await wire.tap("one", 7, theirs)
        assert not (await wire.network.facts(theirs)).vlans
        vlans.ip("link set br0 type bridge vlan_filtering 1")
        one, two = await wire.tap("one", 7, theirs), await wire.tap("two", 7, theirs)
        plain = await wire.tap("plain", None, theirs)
        send(one, frame(EVERYBODY, A))
        assert receive(two, frame(EVERYBODY, A))
        assert not receive(plain, frame(EVERYBODY, A), STAYS_AWAY_S)

    wired(vlans, work)


def test_a_trunk_lets_a_guest_tag_frames_for_its_vlans_and_no_others(vlans: Namespace) -> None:
    def tagged(data: bytes, vlan: int) -> bytes:
        return data[:12] + TAGGED.to_bytes(2) + vlan.to_bytes(2) + data[12:]

    async def work(wire: Wire) -> None:
        router = await wire.network.open_tap("router", LAN, None, "8-9")
        seven, eight = await wire.tap("seven", 7), await wire.tap("eight", 8)
        plain, far8 = await wire.tap("plain"), wire.far("far8")
        data = frame(EVERYBODY, A, b"trunk")
        send(router, tagged(data, 8))
        assert receive(eight, data)
        assert hears(far8, data)
        assert not receive(seven, data, STAYS_AWAY_S)
        send(router, tagged(data, 7))
        assert not receive(seven, data, STAYS_AWAY_S)
        send(router, frame(EVERYBODY, A, b"bare"))
        assert receive(plain, frame(EVERYBODY, A, b"bare"))
        send(eight, frame(EVERYBODY, B, b"back"))
        assert receive(router, tagged(frame(EVERYBODY, B, b"back"), 8))
        os.close(router)

    wired(vlans, work)


def test_a_port_in_use_changes_its_vlan_and_its_switch(vlans: Namespace) -> None:
    async def work(wire: Wire) -> None:
        one, seven, eight = (
            await wire.tap("one", 7),
            await wire.tap("seven", 7),
            await wire.tap("eight", 8),
        )
        assert await wire.network.replug("one", LAN, 8)
        assert not await wire.network.replug("one", LAN, 8)
        send(one, frame(EVERYBODY, A, b"eight"))
        assert receive(eight, frame(EVERYBODY, A, b"eight"))
        assert not receive(seven, frame(EVERYBODY, A, b"eight"), STAYS_AWAY_S)
        inside = Switch(name="inside")
        other = await wire.tap("other", 9, inside)
        assert await wire.network.replug("one", inside, 9)
        send(one, frame(EVERYBODY, A, b"nine"))
        assert receive(other, frame(EVERYBODY, A, b"nine"))
        assert await wire.network.replug("one", LAN)
        plain = await wire.tap("plain")
        send(one, frame(EVERYBODY, A, b"plain"))
        assert receive(plain, frame(EVERYBODY, A, b"plain"))
        assert not receive(eight, frame(EVERYBODY, A, b"plain"), STAYS_AWAY_S)

    wired(vlans, work)


def test_another_uplink_carries_the_vlans_of_the_one_before(vlans: Namespace) -> None:
    vlans.ip("link add up1 type veth peer name new0")
    vlans.ip("link set new0 up")
    vlans.ip("link add link new0 name new7 type vlan id 7")
    vlans.ip("link set new7 up")

    async def work(wire: Wire) -> None:
        seven = await wire.tap("seven", 7)
        await wire.network.change(LAN, Switch(name="lan", uplink="up1"))
        new7, far7 = wire.far("new7"), wire.far("far7")
        send(seven, frame(EVERYBODY, A, b"out"))
        assert hears(new7, frame(EVERYBODY, A, b"out"))
        assert not hears(far7, frame(EVERYBODY, A, b"out"), STAYS_AWAY_S)

    wired(vlans, work)


@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.skipif(guest_python.IS_INSIDE, reason="this is the guest")
def test_switches_and_vlans_work_on_debians_own_kernel(tmp_path: Path) -> None:
    """All tests of bridges and VLANs, by the same code, in a guest with a kernel that can tag."""
    here = Path(__file__).parent
    files = [here / name for name in ("test_host_bridges.py", "test_host_vlans.py")]
    passed, skipped, words = guest_python.run_tests(tmp_path, files)
    assert passed >= 50, words
    assert skipped == 2, words  # this test, and the one for kernels that cannot tag
