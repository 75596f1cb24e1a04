"""Real bridges and taps, in a network namespace of the test's own; real frames pass through."""

import asyncio
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from namespaces import (
    ETHERTYPE,
    EVERYBODY,
    PASSES_S,
    STAYS_AWAY_S,
    A,
    B,
    C,
    Namespace,
    frame,
    receive,
    send,
)

from sterna.errors import (
    NetworkFailed,
    SwitchExists,
    SwitchHasPorts,
    SwitchInUse,
    SwitchNotFound,
    SwitchUnusable,
    VLANUnsupported,
)
from sterna.host import iproute
from sterna.host.bridges import MARK, bridge_name
from sterna.host.network import Network
from sterna.host.registry import Switches
from sterna.host.taps import tap_name
from sterna.model.host import Switch

pytestmark = [
    pytest.mark.functional,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

LAN = Switch(name="lan")
WIRED = Switch(name="lan", uplink="up0")


@pytest.fixture
def ns() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.remove()


@pytest.fixture
def cable(ns: Namespace) -> Namespace:
    """The interface `up0`, with `far0` at the other end."""
    ns.ip("link add up0 type veth peer name far0")
    ns.ip("link set far0 up")
    return ns


# ---- taps -----------------------------------------------------------------------------------


def test_frames_pass_between_two_taps_at_once(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        a, b = await network.open_tap("tapa", LAN), await network.open_tap("tapb", LAN)
        for one, other, data in ((a, b, frame(B, A)), (b, a, frame(A, B))):
            send(one, data)
            assert receive(other, data)
        os.close(a)
        os.close(b)

    ns.do(work)
    assert ns.links() == {"brlan"}


def test_taps_of_two_switches_hear_nothing_of_each_other(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        a = await network.open_tap("tapa", LAN)
        b = await network.open_tap("tapb", Switch(name="dmz"))
        send(a, frame(EVERYBODY, A))
        assert not receive(b, frame(EVERYBODY, A), STAYS_AWAY_S)
        os.close(a)
        os.close(b)

    ns.do(work)


def test_a_tap_dies_with_the_process_that_holds_it(ns: Namespace) -> None:
    async def work() -> None:
        tap = await Network().open_tap("tapa", LAN)
        holder = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop
            [sys.executable, "-c", "print(flush=True); input()"],
            pass_fds=[tap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            os.close(tap)
            assert ns.links() == {"brlan", "tapa"}
            holder.kill()
        assert ns.links() == {"brlan"}
        os.close(await Network().open_tap("tapa", LAN))

    ns.do(work)


def test_a_tap_that_is_open_elsewhere_is_refused_and_not_disturbed(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        tap, other = await network.open_tap("tapa", LAN), await network.open_tap("tapb", LAN)
        with pytest.raises(NetworkFailed, match="could not make tap tapa: Device or resource busy"):
            await network.open_tap("tapa", LAN)
        send(other, frame(A, B))
        assert receive(tap, frame(A, B))
        os.close(tap)
        os.close(other)

    ns.do(work)


def test_a_tap_that_is_just_being_closed_is_waited_for(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        tap = await network.open_tap("tapa", LAN)
        asyncio.get_running_loop().call_later(0.1, os.close, tap)
        os.close(await network.open_tap("tapa", LAN))

    ns.do(work)


def test_a_tap_speaks_virtio_and_is_named_for_its_vm(ns: Namespace) -> None:
    name = tap_name("4c1c2f9e-8d65-4c53-a4a5-28e44a3b8a0f", 12)

    async def work() -> Any:
        tap = await Network().open_tap(name, LAN)
        found = ns.link(name)
        os.close(tap)
        return found

    found = ns.do(work)
    assert found["linkinfo"]["info_data"] == {
        "type": "tap",
        "pi": False,
        "vnet_hdr": True,
        "multi_queue": False,
        "persist": False,
    }
    assert found["master"] == "brlan"


def test_a_tap_takes_the_mtu_of_its_switch(cable: Namespace) -> None:
    for name in ("up0", "far0"):
        cable.ip(f"link set {name} mtu 9000")

    async def work() -> Any:
        tap = await Network().open_tap("tapa", WIRED)
        found = [cable.link(name)["mtu"] for name in ("brlan", "tapa")]
        os.close(tap)
        return found

    assert cable.do(work) == [9000, 9000]


def test_the_host_itself_does_not_speak_ipv6_on_a_switch(ns: Namespace) -> None:
    async def work() -> Any:
        tap = await Network().open_tap("tapa", LAN)
        found = ns.ip("addr show")
        os.close(tap)
        return found

    addresses = {item["ifname"]: item["addr_info"] for item in ns.do(work)}
    assert addresses["brlan"] == addresses["tapa"] == []


def test_a_tap_that_cannot_be_plugged_in_is_gone(ns: Namespace) -> None:
    async def broken(command: Any, stdin: str = "") -> str:
        if "master" in command and "set" in command:
            raise NetworkFailed(action="plug", reason="no")
        return await iproute.run(command, stdin)

    async def work() -> None:
        with pytest.raises(NetworkFailed):
            await Network(broken).open_tap("tapa", LAN)

    ns.do(work)
    assert ns.links() == {"brlan"}


# ---- bridges --------------------------------------------------------------------------------


def test_ensure_may_be_called_again_and_mends_what_a_reboot_took(cable: Namespace) -> None:
    async def work() -> None:
        network = Network()
        await asyncio.gather(*(network.ensure(WIRED) for _ in range(5)))
        cable.ip("link del brlan")
        assert "is gone" in (await network.facts(WIRED)).problem
        await network.ensure(WIRED)
        cable.ip("link set up0 nomaster")
        assert "not plugged into" in (await network.facts(WIRED)).problem
        cable.ip("link set brlan down")
        assert "is down" in (await network.facts(WIRED)).problem
        await network.ensure(WIRED)
        assert (await network.facts(WIRED)).problem == ""
        cable.ip("link set far0 down")
        assert "has no link" in (await network.facts(WIRED)).problem

    cable.do(work)
    made = cable.link("brlan")
    assert made["ifalias"] == "sterna:lan"
    assert made["linkinfo"]["info_data"]["forward_delay"] == 0
    assert made["linkinfo"]["info_data"]["mcast_snooping"] == 0
    assert cable.link("up0")["master"] == "brlan"


def test_opening_a_tap_makes_the_bridge_again(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        await network.ensure(LAN)
        ns.ip("link del brlan")
        os.close(await network.open_tap("tapa", LAN))

    ns.do(work)
    assert ns.links() == {"brlan"}


def test_frames_reach_the_uplink_and_come_back(cable: Namespace) -> None:
    async def work() -> None:
        tap = await Network().open_tap("tapa", WIRED)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as far:
            far.bind(("far0", ETHERTYPE))
            far.settimeout(PASSES_S)
            send(tap, frame(B, A))
            assert far.recv(2048) == frame(B, A)
            far.send(frame(A, B))
        assert receive(tap, frame(A, B))
        os.close(tap)

    cable.do(work)


def test_removing_a_switch_takes_its_bridge_and_frees_its_uplink(cable: Namespace) -> None:
    async def work() -> None:
        network = Network()
        await network.ensure(WIRED)
        await network.remove(WIRED)
        await network.remove(WIRED)

    cable.do(work)
    assert cable.links() == {"up0", "far0"}
    assert "master" not in cable.link("up0")


def test_a_bridge_with_strange_ports_is_not_removed(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        await network.ensure(LAN)
        ns.ip("link add theirs0 type veth peer name theirs1")
        ns.ip("link set theirs0 master brlan")
        with pytest.raises(
            SwitchHasPorts, match="bridge brlan of switch lan still has the interfaces theirs0"
        ):
            await network.remove(LAN)

    ns.do(work)
    assert "brlan" in ns.links()


def test_a_bridge_of_somebody_else_is_used_as_it_is_and_survives(ns: Namespace) -> None:
    ns.ip("link add br0 address 02:00:00:00:00:01 type bridge forward_delay 1500 mcast_snooping 1")
    ns.ip("link set br0 up alias uplink-of-rack-7")
    theirs = Switch(name="office", bridge="br0")
    before = ns.link("br0")

    async def work() -> None:
        network = Network()
        a, b = await network.open_tap("tapa", theirs), await network.open_tap("tapb", theirs)
        send(a, frame(B, A))
        assert receive(b, frame(B, A))  # at once, although the bridge has a forward delay
        os.close(a)
        os.close(b)
        await network.remove(theirs)

    ns.do(work)
    after = ns.link("br0")
    for key in ("ifalias", "mtu", "address"):
        assert after[key] == before[key]
    for key in ("forward_delay", "mcast_snooping", "vlan_filtering", "stp_state"):
        assert after["linkinfo"]["info_data"][key] == before["linkinfo"]["info_data"][key]


def test_the_bridge_of_one_switch_is_not_the_bridge_of_another(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        await network.ensure(LAN)
        twin = Switch(name="twin", bridge="brlan")
        with pytest.raises(SwitchUnusable, match="is the bridge of switch lan"):
            await network.ensure(twin)
        await network.remove(twin)

    ns.do(work)
    assert ns.links() == {"brlan"}


def test_what_is_not_a_bridge_is_refused(cable: Namespace) -> None:
    async def work() -> None:
        with pytest.raises(SwitchUnusable, match="up0 exists and is not a bridge"):
            await Network().ensure(Switch(name="lan", bridge="up0"))

    cable.do(work)
    assert cable.links() == {"up0", "far0"}


def made(cable: Namespace) -> list[tuple[object, ...]]:
    """What somebody has set; whether there is a link becomes known a moment later, by itself."""
    keys = ("ifname", "master", "mtu", "address", "ifalias", "addr_info")
    return [tuple(item.get(key) for key in keys) for item in cable.ip("addr show")]


@pytest.mark.parametrize(
    ("prepare", "finding"),
    [
        (["link del up0"], "hv-a has no interface up0"),
        (["addr add 192.0.2.5/24 dev up0"], "up0 has the address 192.0.2.5"),
        (["link add br9 type bridge", "link set up0 master br9"], "up0 belongs to br9 already"),
        (["link add brlan type bridge"], "brlan was not made by Sterna and lacks the uplink"),
    ],
)
def test_an_uplink_that_would_do_harm_is_refused_and_nothing_changes(
    cable: Namespace, prepare: list[str], finding: str
) -> None:
    for words in prepare:
        cable.ip(words)
    before = made(cable)

    async def work() -> None:
        network = Network(host="hv-a")
        with pytest.raises(SwitchUnusable, match=finding):
            await network.ensure(WIRED)
        assert finding in (await network.facts(WIRED)).problem

    cable.do(work)
    assert made(cable) == before


@pytest.mark.parametrize("word", ["alias", "master", "brlan up"])
def test_a_bridge_whose_making_fails_is_gone(cable: Namespace, word: str) -> None:
    async def fails(command: Any, stdin: str = "") -> str:
        answer = await iproute.run(command, stdin)
        if word in " ".join([*command, stdin]):
            raise NetworkFailed(action="go on", reason="the test says no")
        return answer

    async def work() -> None:
        with pytest.raises(NetworkFailed, match="the test says no"):
            await Network(fails).ensure(WIRED)

    cable.do(work)
    assert cable.links() == {"up0", "far0"}


@pytest.mark.parametrize("step", range(1, 7))
def test_a_bridge_whose_making_is_cancelled_is_gone(cable: Namespace, step: int) -> None:
    calls = 0

    async def cancels(command: Any, stdin: str = "") -> str:
        nonlocal calls
        answer = await iproute.run(command, stdin)
        calls += 1
        if calls == step:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return answer

    async def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            await Network(cancels).ensure(WIRED)

    cable.do(work)
    assert cable.links() == {"up0", "far0"}


def test_a_bridge_that_another_makes_meanwhile_is_not_undone(ns: Namespace) -> None:
    async def late(command: Any, stdin: str = "") -> str:
        if "link add" in stdin:
            ns.ip("link add brlan type bridge")
        return await iproute.run(command, stdin)

    async def work() -> None:
        with pytest.raises(NetworkFailed, match="File exists"):
            await Network(late).ensure(LAN)

    ns.do(work)
    assert ns.links() == {"brlan"}


# ---- moving away ----------------------------------------------------------------------------


def test_a_forgotten_address_is_looked_for_everywhere_again(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        a, b, c = [await network.open_tap(f"tap{name}", LAN) for name in "abc"]
        send(a, frame(EVERYBODY, A))  # the bridge learns where A is
        assert receive(c, frame(EVERYBODY, A))
        send(b, frame(A, B, b"known"))
        assert receive(a, frame(A, B, b"known"))
        assert not receive(c, frame(A, B, b"known"), STAYS_AWAY_S)
        await network.forget(LAN, A)
        await network.forget(LAN, A)
        send(b, frame(A, B, b"sought"))
        assert receive(c, frame(A, B, b"sought"))
        assert receive(a, frame(A, B, b"sought"))
        for tap in (a, b, c):
            os.close(tap)

    ns.do(work)


def test_forgetting_leaves_other_addresses_other_switches_and_fixed_entries(ns: Namespace) -> None:
    dmz = Switch(name="dmz")

    def known() -> set[tuple[str, str]]:
        done = subprocess.run(
            ["bridge", "-n", ns.name, "-j", "fdb", "show"],
            capture_output=True,
            check=True,
        )
        return {(item["ifname"], item["mac"]) for item in json.loads(done.stdout)}

    async def work() -> None:
        network = Network()
        a, b = await network.open_tap("tapa", LAN), await network.open_tap("tapb", dmz)
        for tap, sender in ((a, A), (a, B), (b, A)):
            send(tap, frame(EVERYBODY, sender))
        await iproute.run(["bridge", *f"fdb add {C} dev tapa master static".split()])
        before = known()
        assert {("tapa", A), ("tapa", B), ("tapb", A), ("tapa", C)} <= before
        await network.forget(LAN, A)
        await network.forget(LAN, C)
        assert known() == before - {("tapa", A)}
        for tap in (a, b):
            os.close(tap)

    ns.do(work)


def test_a_switch_without_bridge_cannot_forget(ns: Namespace) -> None:
    async def work() -> None:
        with pytest.raises(NetworkFailed, match="make bridge brlan forget"):
            await Network().forget(LAN, A)

    ns.do(work)


# ---- VLANs ----------------------------------------------------------------------------------


def test_a_vlan_is_refused_where_the_kernel_cannot_tag(ns: Namespace) -> None:
    async def work() -> None:
        network = Network(host="hv-a")
        await network.ensure(LAN)
        if network.can_tag:
            pytest.skip("this kernel can")
        with pytest.raises(
            VLANUnsupported, match="switch lan cannot tag VLAN 7: the kernel of hv-a"
        ):
            await network.open_tap("tapa", LAN, 7)
        assert not (await network.facts(LAN)).vlans

    ns.do(work)
    assert ns.links() == {"brlan"}


# ---- switches by name -----------------------------------------------------------------------


def test_a_switch_is_there_again_after_a_reboot(cable: Namespace, tmp_path: Path) -> None:
    def boot() -> Switches:
        switches = Switches(tmp_path / "switches", Network(host="hv-a"), host="hv-a")
        switches.load()
        return switches

    async def work() -> None:
        made = await boot().create(WIRED)
        assert made == Switch(name="lan", bridge="brlan", uplink="up0")
        cable.ip("link del brlan")
        (tmp_path / "switches" / "bad.json").write_text("{")
        again = boot()
        await again.ensure()
        assert again.list() == [made]
        assert [facts.problem for facts in await again.facts()] == [""]
        assert [damaged.key for damaged in again.damaged] == ["bad"]
        with pytest.raises(SwitchExists):
            await again.create(WIRED)
        with pytest.raises(SwitchInUse, match="used by web"):
            await again.delete("lan", lambda name: ["web"])
        await again.delete("lan", lambda name: [])
        with pytest.raises(SwitchNotFound):
            again.get("lan")
        assert boot().list() == []

    cable.do(work)
    assert cable.links() == {"up0", "far0"}


def test_one_switch_that_cannot_be_made_does_not_stop_the_others(
    cable: Namespace, tmp_path: Path
) -> None:
    async def work() -> None:
        network = Network(host="hv-a")
        switches = Switches(tmp_path, network, host="hv-a")
        await switches.create(Switch(name="a", uplink="up0"))
        await switches.create(Switch(name="b"))
        for name in ("bra", "brb", "up0"):
            cable.ip(f"link del {name}")
        await switches.ensure()
        found = {facts.switch.name: facts.problem for facts in await switches.facts()}
        assert found == {"a": "hv-a has no interface up0", "b": ""}

    cable.do(work)


def test_a_switch_that_fails_leaves_no_record(ns: Namespace, tmp_path: Path) -> None:
    async def work() -> None:
        switches = Switches(tmp_path, Network(host="hv-a"), host="hv-a")
        with pytest.raises(SwitchUnusable, match="hv-a has no interface up0"):
            await switches.create(WIRED)
        assert switches.list() == []

    ns.do(work)
    assert list(tmp_path.iterdir()) == []
    assert ns.links() == set()


def test_a_made_up_bridge_name_never_hits_a_bridge_of_somebody_else(
    ns: Namespace, tmp_path: Path
) -> None:
    ns.ip("link add brlan type bridge")

    async def work() -> None:
        switches = Switches(tmp_path, Network(), host="hv-a")
        with pytest.raises(SwitchUnusable, match="brlan exists already and was not made by Sterna"):
            await switches.create(LAN)
        await switches.create(Switch(name="lan", bridge="brlan"))
        with pytest.raises(SwitchUnusable, match="brlan is the bridge of switch lan"):
            await switches.create(Switch(name="other", bridge="brlan"))
        await switches.delete("lan", lambda name: [])

    ns.do(work)
    assert ns.links() == {bridge_name(LAN)}
    assert MARK not in ns.link("brlan").get("ifalias", "")


# ---- who is reached -------------------------------------------------------------------------

HOSTS_OWN = "192.0.2.99"  # on another interface of the host


def who_has(address: str, sender: str) -> bytes:
    """An ARP request (RFC 826) of a machine that claims 192.0.2.7."""
    mac = bytes.fromhex(sender.replace(":", ""))
    body = bytes.fromhex("0001080006040001") + mac + socket.inet_aton("192.0.2.7") + bytes(6)
    return b"\xff" * 6 + mac + bytes.fromhex("0806") + body + socket.inet_aton(address)


def is_answered(tap: int, address: str, seconds: float) -> bool:
    """Whether an ARP reply comes for `address`."""
    send(tap, who_has(address, A))
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([tap], [], [], left)[0]:
            data = os.read(tap, 65536)[10:]
            if data[12:14] == b"\x08\x06" and data[20:22] == b"\0\x02":
                return data[28:32] == socket.inet_aton(address)
    return False


@pytest.mark.parametrize("kind", ["internal", "private"])
def test_guests_reach_their_host_only_on_a_switch_that_is_not_private(
    ns: Namespace, kind: str
) -> None:
    ns.ip("link set lo up")
    ns.ip(f"addr add {HOSTS_OWN}/24 dev lo")

    async def work() -> None:
        network = Network()
        switch = Switch(name="inside", type=kind)
        one, two = await network.open_tap("one", switch), await network.open_tap("two", switch)
        reached = is_answered(one, HOSTS_OWN, PASSES_S if kind == "internal" else 1.0)
        assert reached == (kind == "internal")
        send(one, frame(B, A))
        assert receive(two, frame(B, A))  # but each other they reach
        changed = Switch(name="inside", type="internal" if kind == "private" else "private")
        await network.change(switch, changed)
        assert is_answered(one, HOSTS_OWN, PASSES_S if kind == "private" else 1.0) == (not reached)
        assert (await network.facts(changed)).problem == ""
        os.close(one)
        os.close(two)

    ns.do(work)


def test_the_host_has_its_address_on_an_internal_switch(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        switch = Switch(name="inside", address="192.0.2.1/24")
        tap = await network.open_tap("one", switch)
        assert is_answered(tap, "192.0.2.1", PASSES_S)
        os.close(tap)

    ns.do(work)


def test_a_private_switch_whose_bridge_was_given_an_address_says_so(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        switch = Switch(name="cage", type="private")
        await network.ensure(switch)
        ns.ip("addr add 192.0.2.1/24 dev brcage")
        assert "has the address 192.0.2.1" in (await network.facts(switch)).problem

    ns.do(work)


def test_a_port_in_use_is_plugged_into_another_switch(ns: Namespace) -> None:
    async def work() -> None:
        network = Network()
        dmz = Switch(name="dmz", mtu=4000)
        tap = await network.open_tap("tapa", LAN)
        lan, far = await network.open_tap("tapb", LAN), await network.open_tap("tapc", dmz)
        assert await network.replug("tapa", dmz)
        assert not await network.replug("tapa", dmz)  # it is there
        send(tap, frame(EVERYBODY, A))
        assert receive(far, frame(EVERYBODY, A))
        assert not receive(lan, frame(EVERYBODY, A), STAYS_AWAY_S)
        assert ns.link("tapa")["mtu"] == 4000
        assert (await network.facts(LAN)).mtu == 1500
        with pytest.raises(VLANUnsupported) if not network.can_tag else contextlib.nullcontext():
            await network.replug("tapa", dmz, 7)
        send(tap, frame(EVERYBODY, A, b"still"))
        assert receive(far, frame(EVERYBODY, A, b"still")) or network.can_tag
        for one in (tap, lan, far):
            os.close(one)

    ns.do(work)


def test_an_uplink_that_was_to_leave_leaves_after_a_crash(cable: Namespace, tmp_path: Path) -> None:
    """The record of a change is there, the change is not: never two uplinks at once."""
    cable.ip("link add up1 type veth peer name far1")
    cable.ip("link set far1 up")

    async def work() -> None:
        switches = Switches(tmp_path, Network(), host="here")
        await switches.create(WIRED)
        file = tmp_path / "lan.json"
        record = json.loads(file.read_text())
        record["former"] = dict(record["switch"])
        record["switch"]["uplink"] = "up1"
        file.write_text(json.dumps(record))
        again = Switches(tmp_path, Network(), host="here")
        assert again.load() == []
        await again.ensure()
        ports = {item["ifname"] for item in cable.ip("link show master brlan")}
        assert ports == {"up1"}
        assert json.loads(file.read_text())["former"] is None

    cable.do(work)


def test_interfaces_that_may_be_uplinks_are_known(cable: Namespace) -> None:
    cable.ip("addr add 192.0.2.1/24 dev far0")

    async def work() -> None:
        network = Network()
        assert await network.uplinks() == ("up0",)
        await network.ensure(WIRED)
        assert await network.uplinks() == ()

    cable.do(work)
