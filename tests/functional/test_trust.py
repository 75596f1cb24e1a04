"""Hosts that begin to trust each other, go on with new keys, and end it; by the commands that users type."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checking import Administrator, make
from moving import traveller, wait_until
from sterna.lab import hosts as lab_hosts
from sterna.lab.hosts import Host
from sterna.lab.links import Network

pytestmark = pytest.mark.functional

TREE = Path(__file__).parent.parent.parent
CRASHING = Path(__file__).with_name("trust_crashing.py")
SLOW = "100mbit"
MUTUAL = [("hv-a", "this"), ("hv-b", "up")], [("hv-b", "this"), ("hv-a", "up")]


@pytest.fixture
def pair(lab):
    """Both hosts, which trust each other afterwards as before."""
    yield lab.hosts
    here, there = lab.hosts
    if (known(here), known(there)) != MUTUAL:
        forget(here, there)
        here.pair(there)


@pytest.fixture
def strangers(pair):
    """Two hosts that do not trust each other yet."""
    forget(*pair)
    return pair


def known(host: Host) -> list[tuple[str, str]]:
    return [(row["name"], row["state"]) for row in host.client.get("/v1/hosts")]


def forget(here: Host, there: Host) -> None:
    for one, other in ((here, there), (there, here)):
        Administrator(one).ask(f"sterna host distrust {other.name}")


def token_of(host: Host) -> str:
    return str(json.loads(Administrator(host).run("sterna host invite -o json"))["token"])


def shown(host: Host) -> str:
    return (host.folder / "state" / "identity" / "certificate.pem").read_text()


@contextlib.contextmanager
def crashing(host: Host, point: str) -> Iterator[None]:
    """`host` ends itself at that point; an ordinary one is started in the end."""
    ordinary = lab_hosts._daemon
    lab_hosts._daemon = lambda: [sys.executable, str(CRASHING), point]
    host.stop()
    try:
        host.start()
        host.wait_ready()
    finally:
        lab_hosts._daemon = ordinary
    yield
    wait_until(lambda: host.process is None, f"{host.name} ends at {point}")
    host.start()
    host.wait_ready()


@pytest.mark.parametrize("side", ["joiner", "inviter"])
@pytest.mark.parametrize("point", ["unrecorded", "recorded"])
def test_a_daemon_that_dies_while_it_joins_leaves_nothing_that_the_same_command_does_not_mend(
    strangers, side, point
):
    here, there = strangers
    with crashing(here if side == "joiner" else there, point):
        token = token_of(there)
        assert Administrator(here).ask(f"sterna host join {token}").returncode != 0
    again = Administrator(here).ask(f"sterna host join {token}")
    if side == "inviter" and point == "unrecorded":  # the token has ended with its daemon
        assert again.returncode == 5
        assert "does not know it" in again.stderr
        Administrator(here).run(f"sterna host join {token_of(there)}")
    else:
        assert again.returncode == 0, again.stderr
    assert (known(here), known(there)) == MUTUAL


@pytest.mark.parametrize("point", ["prepared", "announced", "half"])
def test_a_daemon_that_dies_while_it_rotates_is_trusted_still_and_goes_on_with_it(pair, point):
    here, there = pair
    before = shown(here)
    with crashing(here, point):
        assert Administrator(here).ask("sterna host rotate").returncode != 0
    assert (known(here), known(there)) == MUTUAL
    assert (shown(here) == before) is (point != "half")
    if point == "announced":
        assert "new certificate is ready" in Administrator(here).run("sterna host show")
    Administrator(here).run("sterna host rotate")
    assert shown(here) != before
    assert (known(here), known(there)) == MUTUAL
    assert not list((here.folder / "state" / "identity").glob("next-*"))


def test_a_daemon_that_dies_after_the_record_is_gone_trusts_nobody_again(pair):
    here, there = pair
    with crashing(here, "removed"):
        Administrator(here).ask(f"sterna host distrust {there.name}")
    assert known(here) == [("hv-a", "this")]
    assert known(there) == [("hv-b", "this"), ("hv-a", "down")]


def test_keys_change_on_both_sides_of_a_running_move_and_nobody_notices(pair, lab):
    here, there = pair
    lab.shape(Network.MIGRATION, SLOW)
    with traveller(lab) as guest:
        operation = guest.move(here, there)
        wait_until(lambda: guest.phase_of(here, operation) == "memory", "the memory travels")
        certificates = shown(here), shown(there)
        for host in pair:
            Administrator(host).run("sterna host rotate")
        assert shown(here) != certificates[0]
        assert shown(there) != certificates[1]
        lab.shape(Network.MIGRATION, None)
        assert guest.ended(here, operation)["state"] == "succeeded"
        guest.must_run_once_on(there)
    assert (known(here), known(there)) == MUTUAL
    for host, other in ((here, there), (there, here)):  # the former one counts no more
        record = json.loads((host.folder / "state/peers" / f"{other.name}.json").read_text())
        assert record["certificate"] == shown(other)
        assert record["next"] == ""


def test_a_peer_that_is_away_keeps_the_old_key_in_use(pair):
    here, there = pair
    before = shown(here)
    there.stop()
    done = Administrator(here).ask("sterna host rotate")
    assert done.returncode == 1
    assert "hv-b could not be told" in done.stderr
    assert shown(here) == before
    there.start()
    there.wait_ready()
    assert (known(here), known(there)) == MUTUAL
    Administrator(here).run("sterna host rotate")
    assert (known(here), known(there)) == MUTUAL


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_host_that_is_distrusted_in_mid_move_is_not_given_the_vm(pair, lab, side):
    here, there = pair
    lab.shape(Network.MIGRATION, SLOW)
    with traveller(lab) as guest:
        operation = guest.move(here, there)
        wait_until(lambda: guest.phase_of(here, operation) == "memory", "the memory travels")
        actor, other = (here, there) if side == "source" else (there, here)
        said = Administrator(actor).run(f"sterna host distrust {other.name}")
        assert f"undone: sterna op show {operation['id']}" in said
        done = guest.ended(here, operation)
        assert done["state"] in ("cancelled", "failed", "partial"), done
        wait_until(lambda: there.client.get("/v1/vms") == [], "the target has removed what it made")
        lab.shape(Network.MIGRATION, None)
        guest.must_run_once_on(here)
        assert not list((there.folder / "pool").glob("tern*"))


def test_a_host_that_has_moved_is_found_again(pair):
    here, there = pair
    admin = Administrator(here)
    url = next(row["url"] for row in here.client.get("/v1/hosts") if row["name"] == "hv-b")
    admin.run("sterna host set-address hv-b https://192.0.2.9:7443")
    assert known(here) == [("hv-a", "this"), ("hv-b", "down")]
    admin.run(f"sterna host set-address hv-b {url}")
    assert known(here) == MUTUAL[0]
    make(here)
    admin.moves("tern", there)


def test_the_three_commands_of_the_document_lead_two_fresh_hosts_to_a_move(strangers):
    here, there = strangers
    text = (TREE / "docs" / "howto" / "two-hosts.md").read_text()
    section = text.partition("in three commands\n")[2].partition("\n## ")[0]
    commands = [block.partition("```")[0].strip() for block in section.split("```sh\n")[1:]]
    assert len(commands) == 3
    invite, join, move = (one.replace("host-b", there.name) for one in commands)
    make(here, "web")
    assert known(here) == [("hv-a", "this")]
    printed = Administrator(here).run(invite)
    (typed,) = [line for line in printed.splitlines() if line.startswith("sterna host join")]
    assert typed.rpartition(" ")[0] == join.removesuffix(" TOKEN")
    Administrator(there).run(typed)
    Administrator(here).run(move)
    assert [vm["name"] for vm in there.client.get("/v1/vms")] == ["web"]
