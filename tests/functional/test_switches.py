"""Switches and cables changed under a guest that runs: it is heard all the time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time

import pytest

from checking import Administrator
from moving import record_of, traveller, wait_until
from sterna.errors import SwitchNotFound
from sterna.host.taps import tap_name
from sterna.lab.vm import Load

pytestmark = pytest.mark.functional

CUT_MS = 1000  # a busy machine; a link that went down and up would cost its guest seconds
CONFLICT, REFUSED = 4, 3


def ip(host, words: str) -> list[dict]:
    done = subprocess.run(
        host.command(["ip", "-j", *words.split()]), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout or "[]")


@pytest.fixture
def admin(lab):
    return Administrator(lab.hosts[0])


@pytest.fixture
def dmz(lab, admin):
    """A second external switch, whose two possible uplinks lead to the same network as `lan`."""
    host = lab.hosts[0]
    for uplink in ("up1", "up2"):
        ip(host, f"link add {uplink} type veth peer name far-{uplink}")
        ip(host, f"link set far-{uplink} master brlan up")
    admin.run("sterna switch create dmz --uplink up1")
    yield host
    for vm in host.client.get("/v1/vms"):
        admin.ask(f"sterna vm stop --force {vm['name']}")
        admin.ask(f"sterna vm delete --yes {vm['name']}")
    with contextlib.suppress(SwitchNotFound):
        host.client.delete("/v1/switches/dmz")
    for uplink in ("up1", "up2"):
        ip(host, f"link del {uplink}")


def master_of(host) -> str:
    tap = tap_name(host.client.get("/v1/vms/tern")["id"], 0)
    return ip(host, f"link show dev {tap}")[0]["master"]


def test_a_guest_is_heard_while_its_cable_and_its_switch_change(lab, dmz, admin):
    host = lab.hosts[0]
    with traveller(lab, Load()) as guest:

        def heard(line: str, code: int = 0) -> str:
            """The output of a command during which the guest is heard all the time."""
            began = time.time_ns()
            done = admin.ask(line)
            assert done.returncode == code, (line, done.stdout, done.stderr)
            felt = guest.witness.felt(began)
            assert felt.felt_ms < CUT_MS, (line, felt)
            assert felt.boots == (guest.boot,)
            return done.stdout + done.stderr

        assert master_of(host) == "brlan"
        heard("sterna vm nic set tern net0 --switch dmz")
        assert master_of(host) == "brdmz"
        assert json.loads(record_of(host).read_text())["spec"]["nics"][0]["switch"] == "dmz"
        # Another uplink: done. What would cut it off: refused, with its name.
        heard("sterna switch set dmz --uplink up2")
        assert {link["ifname"] for link in ip(host, "link show master brdmz")} == {
            "up2",
            tap_name(host.client.get("/v1/vms/tern")["id"], 0),
        }
        assert "tern" in heard("sterna switch set dmz --type private", CONFLICT)
        assert "no link" in heard("sterna switch set dmz --uplink none", CONFLICT)
        assert "tern" in heard("sterna switch delete dmz", CONFLICT)
        heard("sterna switch set dmz --mtu 4000")
        assert {link["mtu"] for link in ip(host, "link show master brdmz")} == {4000}
        assert "4000" in heard("sterna switch set dmz --mtu 1400", CONFLICT)
        if not host.client.get("/v1/switches/dmz")["vlans"]:
            assert "VLAN" in heard("sterna vm nic set tern net0 --vlan 7", REFUSED)
            assert host.client.get("/v1/vms/tern")["spec"]["nics"][0]["vlan"] is None
        assert "no switch called" in heard("sterna vm nic set tern net0 --switch no", CONFLICT)
        assert "no NIC called" in heard("sterna vm nic set tern net9 --switch lan", CONFLICT)
        assert "MAC" in heard("sterna vm nic set tern net0 --mac new", CONFLICT)
        assert master_of(host) == "brdmz"

        # A daemon that dies after the record, before the cable: the next one moves the cable.
        record = record_of(host)
        host.kill()
        written = json.loads(record.read_text())
        written["spec"]["nics"][0]["switch"] = "lan"
        record.write_text(json.dumps(written))
        began = time.time_ns()
        host.start()
        host.wait_ready()
        wait_until(lambda: master_of(host) == "brlan", "the cable is where the record says")
        assert guest.witness.felt(began).felt_ms < CUT_MS

    # A VM that is off is plugged in at its next start, and may have another MAC address.
    admin.run("sterna vm stop --force tern")
    mac = host.client.get("/v1/vms/tern")["spec"]["nics"][0]["mac"]
    admin.run("sterna vm nic set tern net0 --switch dmz --mac new")
    (nic,) = host.client.get("/v1/vms/tern")["spec"]["nics"]
    assert nic["switch"] == "dmz"
    assert nic["mac"] != mac
    admin.run("sterna vm start tern")
    assert master_of(host) == "brdmz"


def test_a_switch_is_shown_and_changed_as_a_whole(lab, admin):
    host = lab.hosts[0]
    try:
        admin.run("sterna switch create inside --address 192.168.50.1/24")
        shown = admin.run("sterna switch show inside")
        assert "internal" in shown
        assert "192.168.50.1/24" in shown
        (link,) = ip(host, "addr show dev brinside")
        assert "192.168.50.1" in {one["local"] for one in link["addr_info"]}
        admin.run("sterna switch set inside --type private")
        (link,) = ip(host, "addr show dev brinside")
        assert not link["addr_info"]
        assert "NOARP" in link["flags"]
        assert "private" in admin.run("sterna switch list")
        admin.run("sterna switch set inside --type internal --address 192.168.51.1/24")
        (link,) = ip(host, "addr show dev brinside")
        assert [one["local"] for one in link["addr_info"]] == ["192.168.51.1"]
        assert "NOARP" not in link["flags"]
        wrong = admin.ask("sterna switch set inside --type external")
        assert wrong.returncode == REFUSED
        assert "no uplink" in wrong.stderr
        assert host.client.get("/v1/switches/inside")["switch"]["type"] == "internal"
    finally:
        host.client.delete("/v1/switches/inside")
