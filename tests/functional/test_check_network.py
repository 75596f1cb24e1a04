"""Checks of networks: each bad situation is made, found, mended as it was told, and the move goes."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from checking import WARNED, Administrator, closed_port, ip, odd
from moving import traveller, wait_until
from sterna.errors import NotFound
from sterna.lab.links import Network
from sterna.lab.vm import Load
from sterna.move.probe import MAX_OPEN

pytestmark = pytest.mark.functional


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


@pytest.fixture(autouse=True)
def tidy(request):
    """Every switch as the lab made it, whatever a test left."""
    lab = request.getfixturevalue("lab") if "lab" in request.fixturenames else None
    yield
    if lab is None:
        return
    for host in lab.hosts:
        for vm in host.client.get("/v1/vms"):
            if vm["state"] != "off":
                operation = host.client.post(f"/v1/vms/{vm['name']}:stop", {"force": True})
                host.client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
            host.client.delete(f"/v1/vms/{vm['name']}")
        for name in ("lan", "dmz", "inside"):
            with contextlib.suppress(NotFound):
                host.client.delete(f"/v1/switches/{name}")
        ip(host, "link set data0 mtu 1500")
        host.client.post("/v1/switches", {"name": "lan", "uplink": "data0"})


def make(host, name: str = "tern", **nic: object) -> None:
    """A VM, off, with one NIC and a small disk on a pool of its own."""
    disk = {"name": "vda", "pool": "local", "size": "16MiB"}
    nics = [{"name": "net0", "switch": "lan", **nic}]
    host.client.post("/v1/vms", {"name": name, "memory": "64MiB", "disks": [disk], "nics": nics})


def must_be_found_and_mended(admin, there, identity: str, severity: str = "blocker") -> dict:
    """Found under that id, alone; the move is refused; its command mends it and the move goes."""
    (found,) = admin.check("tern", there)["findings"]
    assert (found["id"], found["severity"]) == (identity, severity)
    if severity == "blocker":
        admin.is_refused("tern", there, identity)
    admin.run(found["command"])
    assert admin.check("tern", there)["findings"] == []
    admin.moves("tern", there)
    return found


def test_a_missing_switch_is_made_like_the_one_here(lab, admin):
    here, there = lab.hosts
    make(here)
    there.client.delete("/v1/switches/lan")
    found = must_be_found_and_mended(admin, there, "network.switch-missing")
    assert found["command"].endswith("switch create lan --uplink data0")


def test_a_target_that_many_ask_at_once_is_not_called_well(lab, admin):
    here, there = lab.hosts
    make(here)
    with ThreadPoolExecutor(3 * MAX_OPEN) as crowd:
        asked = [crowd.submit(there.client.post, "/v1/peer/probes") for _ in range(3 * MAX_OPEN)]
        wait_until(lambda: sum(one.done() for one in asked) >= MAX_OPEN, "the first are in")
        (found,) = admin.check("tern", there)["findings"]
        assert (found["id"], found["severity"]) == ("network.not-tried", "warning")
    wait_until(lambda: admin.check("tern", there)["findings"] == [], "it is asked by nobody else")
    admin.moves("tern", there)


def test_a_switch_of_another_type_is_found(lab, admin):
    here, there = lab.hosts
    make(here)
    there.client.delete("/v1/switches/lan")
    there.client.post("/v1/switches", {"name": "lan"})
    report = admin.finds("tern", there)
    assert set(report) == {"network.switch-differs"}
    assert "external on hv-a and internal on hv-b" in report["network.switch-differs"]["finding"]
    must_be_found_and_mended(admin, there, "network.switch-differs")


def test_a_switch_that_lets_less_through_is_widened(lab, admin):
    here, there = lab.hosts
    make(here)
    ip(there, "link set data0 mtu 1400")
    found = must_be_found_and_mended(admin, there, "network.mtu")
    assert "1500" in found["finding"]
    assert "1400" in found["finding"]


def test_a_switch_that_lets_less_of_jumbo_packets_through_is_a_warning(lab, admin):
    here, there = lab.hosts
    make(here)
    admin.run("sterna switch set lan --mtu 4000")
    must_be_found_and_mended(admin, there, "network.mtu-smaller", "warning")


def test_a_switch_that_does_not_work_is_found(lab, admin):
    here, there = lab.hosts
    make(here)
    ip(there, "link set brlan down")
    found = admin.finds("tern", there)
    assert set(found) == {"network.switch-broken"}
    assert "brlan is down" in found["network.switch-broken"]["finding"]
    assert "brlan is down" in admin.run(found["network.switch-broken"]["command"])
    ip(there, "link set brlan up")
    admin.moves("tern", there)


def test_a_mac_address_that_is_taken_there_is_given_up_by_the_other(lab, admin):
    here, there = lab.hosts
    make(here, mac="52:54:00:12:34:56")
    make(there, "other", mac="52:54:00:12:34:56")
    found = must_be_found_and_mended(admin, there, "network.mac-taken")
    assert "net0 of other on hv-b" in found["finding"]
    assert there.client.get("/v1/vms/other")["spec"]["nics"][0]["mac"] != "52:54:00:12:34:56"


def test_a_name_that_is_taken_there_is_found(lab, admin):
    here, there = lab.hosts
    make(here)
    make(there)
    assert set(admin.finds("tern", there)) == {"vm.exists", "volume.exists"}
    admin.is_refused("tern", there, "vm.exists")
    there.client.delete("/v1/vms/tern")
    admin.moves("tern", there)


def test_a_vm_of_an_island_is_told_so_and_goes(lab, admin):
    here, there = lab.hosts
    for host in lab.hosts:
        host.client.post("/v1/switches", {"name": "inside", "type": "private"})
    make(here, switch="inside")
    report = admin.check("tern", there)
    (found,) = report["findings"]
    assert (found["id"], found["severity"], report["outcome"]) == ("network.island", "info", "well")
    admin.run(f"sterna move tern {there.name} --network net0=lan")
    assert there.client.get("/v1/vms/tern")["spec"]["nics"][0]["switch"] == "lan"


def test_a_mapping_that_cuts_a_vm_off_is_warned_of(lab, admin):
    here, there = lab.hosts
    make(here)
    there.client.post("/v1/switches", {"name": "inside"})
    report = admin.check("tern", there, "--network net0=inside")
    (found,) = report["findings"]
    assert (found["id"], found["severity"]) == ("network.cut-off", "warning")
    assert "reaches the network of data0" in found["finding"]
    assert "Leave --network out" in found["fix"]
    assert admin.check("tern", there)["findings"] == []
    admin.moves("tern", there)


def test_vlans_that_the_target_cannot_tag_are_found(lab, admin):
    here, there = lab.hosts
    if not here.client.get("/v1/switches/lan")["vlans"]:
        pytest.skip("this kernel has no bridge VLAN filtering: no NIC can have a VLAN here")
    make(here, vlan=7)
    assert admin.finds("tern", there) == {}
    ip(there, "link set brlan type bridge vlan_filtering 0")
    assert set(admin.finds("tern", there)) == {"network.vlan"}


def test_a_guest_that_runs_is_mapped_to_another_switch(lab, admin):
    """Its client hears it from a switch of another name, which its record there names."""
    here, there = lab.hosts
    there.client.delete("/v1/switches/lan")
    there.client.post("/v1/switches", {"name": "dmz", "uplink": "data0"})
    with traveller(lab, Load()) as guest:
        found = admin.finds("tern", there)["network.switch-missing"]
        assert "dmz with --network net0=SWITCH" in found["fix"]
        admin.is_refused("tern", there, "network.switch-missing")
        assert "no NIC net7" in str(admin.check("tern", there, "--network net7=dmz")["findings"])
        report = admin.check("tern", there, "--network net0=dmz")
        assert report["findings"] == []
        assert report["wishes"]["networks"] == {"net0": "dmz"}
        (way,) = report["ways"]
        assert (way["state"], way["local"]) == ("open", "10.92.0.11")
        assert way["rtt_ms"] > 0
        assert report["rate"] > 0
        admin.moves("tern", there, "--network net0=dmz")
        guest.must_run_once_on(there)
        assert there.client.get("/v1/vms/tern")["spec"]["nics"][0]["switch"] == "dmz"
        # And back, where its switch has the other name again.
        back = Administrator(there)
        back.moves("tern", here, "--network net0=lan")
        guest.must_run_once_on(here)


def test_ways_that_do_not_connect_are_told_apart(lab, admin):
    """A firewall that swallows TCP, a cable that is out, an address that is gone."""
    here, there = lab.hosts
    address = there.migration_address
    make(here)
    with closed_port(there):
        found = admin.finds("tern", there)
        assert set(found) == {"network.blocked"}
        assert address in found["network.blocked"]["finding"]
        admin.is_refused("tern", there, "network.blocked")
    assert admin.finds("tern", there) == {}

    lab.cut(there.name, Network.MIGRATION)
    assert set(admin.finds("tern", there)) == {"network.unreachable"}
    admin.is_refused("tern", there, "network.unreachable")
    lab.restore(there.name, Network.MIGRATION)
    wait_until(lambda: admin.finds("tern", there) == {}, "the way is open again")

    ip(there, f"addr del {address}/24 dev mig0")
    try:
        found = admin.finds("tern", there)
        assert set(found) == {"network.address-absent"}
        admin.is_refused("tern", there, "network.address-absent")
    finally:
        ip(there, f"addr add {address}/24 dev mig0")
    admin.moves("tern", there)


def test_one_of_two_ways_that_is_lost_is_a_warning(make_lab):
    lab = make_lab(migrations=2)
    here, there = lab.hosts
    admin = Administrator(here)
    make(here)
    assert [way["state"] for way in admin.check("tern", there)["ways"]] == ["open", "open"]
    lab.cut(there.name, Network.MIGRATION2)
    found = admin.finds("tern", there)
    assert {key: one["severity"] for key, one in found.items()} == {"network.way-lost": "warning"}
    admin.run(f"sterna move tern {there.name}", WARNED)  # by the other way
    lab.restore(there.name, Network.MIGRATION2)
    back = Administrator(there)
    wait_until(lambda: back.finds("tern", here) == {}, "both ways are open again")


def test_moves_that_checks_forbid_end_as_they_say(lab, admin):
    here, there = lab.hosts
    blind = [
        *("host.inbound", "host.draining", "network.switch-missing", "network.mac-taken"),
        *("storage.pool-missing", "placement.host"),
        *("switch.not-found", "pool.not-found"),  # as the target tells it
    ]
    with odd(here, blind=blind), odd(there, blind=blind):
        make(here, mac="52:54:00:12:34:56")
        there.client.patch("/v1/host/settings", {"inbound": False})
        assert set(admin.finds("tern", there)) == {"host.inbound"}
        done = admin.ask(f"sterna move tern {there.name}")
        assert "inbound" in done.stderr  # by the target, which has the last word
        assert here.client.get("/v1/vms/tern")["state"] == "off"
        there.client.patch("/v1/host/settings", {"inbound": True})

        back = Administrator(there)
        back.run("sterna host drain")
        assert set(admin.finds("tern", there)) == {"host.draining"}
        done = admin.ask(f"sterna move tern {there.name}")
        assert "drained" in done.stderr
        assert here.client.get("/v1/vms/tern")["state"] == "off"
        back.run("sterna host resume")

        there.client.delete("/v1/pools/local")
        assert set(admin.finds("tern", there)) == {"storage.pool-missing"}
        done = admin.ask(f"sterna move tern {there.name}")
        assert done.returncode != 0
        assert "local" in done.stderr
        assert here.client.get("/v1/vms/tern")["state"] == "off"
        there.client.post("/v1/pools", {"name": "local", "path": str(there.folder / "pool")})

        admin.run(f"sterna vm set tern --allowed-hosts {here.name}")
        assert set(admin.finds("tern", there)) == {"placement.host"}
        admin.moves("tern", there)
        assert there.client.get("/v1/vms/tern")["spec"]["placement"]["allowed_hosts"] == [here.name]
        back.moves("tern", here)
        admin.run("sterna vm set tern --allowed-hosts none")

        make(there, "other", mac="52:54:00:12:34:56")
        assert set(admin.finds("tern", there)) == {"network.mac-taken"}
        admin.moves("tern", there)
        macs = [one["spec"]["nics"][0]["mac"] for one in there.client.get("/v1/vms")]
        assert macs == ["52:54:00:12:34:56"] * 2  # two of them on one network

        there.client.delete("/v1/vms/other")
        here.client.delete("/v1/switches/lan")
        assert set(back.finds("tern", here)) == {"network.switch-missing"}
        back.moves("tern", here)
        refused = admin.ask("sterna vm start tern")
        assert refused.returncode != 0
        assert "lan" in refused.stderr
