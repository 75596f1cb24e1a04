"""What hosts are set to for moves is what moves do: the networks, the carrier, the pause, encryption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from checking import Administrator, sent
from moving import traveller
from sterna.errors import BadSpec
from sterna.lab.vm import Load

pytestmark = pytest.mark.functional

FIRST, SECOND = "10.92.0.0/24", "10.94.0.0/24"  # the lab's migration networks
FEW = 300_000  # bytes: of connections that are only tried


@contextmanager
def goes_by(host, used: str, other: str) -> Iterator[None]:
    """What leaves `host` in the block leaves by the interface `used`."""
    before = sent(host, used), sent(host, other)
    yield
    assert sent(host, used) - before[0] > 4 * FEW
    assert sent(host, other) - before[1] < FEW


def settle(host, **settings):
    return host.client.patch("/v1/host/settings", settings)


def must_show_its_forecast(admin, done) -> None:
    """What had been expected, beside what was measured."""
    compared, result = done["result"]["forecast"], done["result"]
    assert compared.keys() == {"total_s", "pause_ms", "bytes_wire"}
    for name, one in compared.items():
        assert one["measured"] == result[name]
        assert one["expected"] == result["forecasts"][result["carrier"]][name]
    pause = compared["pause_ms"]
    assert pause["error"] == pytest.approx(pause["measured"] - pause["expected"], abs=0.1)
    shown = admin.run(f"sterna op show {done['id']}")
    for words in ("time: ", "pause: ", "on the wire: "):
        (line,) = [one for one in shown.splitlines() if words in one and "expected" in one]
        assert "measured (" in line


def test_moves_do_as_both_hosts_are_set(make_lab):
    lab = make_lab(migrations=2)
    a, b = lab.hosts
    admin, back = Administrator(a), Administrator(b)
    with pytest.raises(
        BadSpec, match=r"203\.0\.113\.0/24 matches no address where moves reach hv-a"
    ):
        settle(a, migration_networks=["203.0.113.0/24"])
    with pytest.raises(BadSpec, match=r"10\.92\.0\.1/24 has host bits set; write 192\.0\.2\.0/24"):
        settle(a, migration_networks=["10.92.0.1/24"])
    with traveller(lab, Load()) as guest:
        assert "networks any" in admin.run("sterna host show")
        said = admin.run(f"sterna host set --migration-networks {SECOND} --carrier direct")
        assert f"networks {SECOND}, carrier direct" in said
        with goes_by(a, "mig20", "mig0"):  # the source's word
            admin.moves("tern", b)
        (done,) = a.client.get("/v1/operations", {"kind": "move", "limit": 1})
        assert done["result"]["carrier"] == "direct"
        must_show_its_forecast(admin, done)
        settle(b, migration_networks=[FIRST], carrier="compression", max_downtime_ms=250)
        found = back.finds("tern", a)  # a is reached by the second alone
        assert list(found) == ["network.none-allowed"]
        back.is_refused("tern", a, "network.none-allowed")
        back.run(found["network.none-allowed"]["command"])
        report = back.check("tern", a)
        assert (report["carrier"], report["wishes"]["max_downtime_ms"]) == ("compression", 250)
        assert back.check("tern", a, "--carrier direct --max-downtime 1s")["carrier"] == "direct"
        with goes_by(b, "mig20", "mig0"):  # the target's word
            back.moves("tern", a)
        (done,) = b.client.get("/v1/operations", {"kind": "move", "limit": 1})
        assert done["result"]["carrier"] == "compression"

        settle(a, migration_networks=[FIRST, SECOND], encryption="off")
        found = admin.finds("tern", b)
        assert list(found) == ["host.encryption"]
        admin.is_refused("tern", b, "host.encryption")
        assert admin.finds("tern", b, "--carrier compression") == {}
        admin.run(found["host.encryption"]["command"])
        with goes_by(a, "mig0", "mig20"):  # the first of both
            admin.moves("tern", b)
        guest.must_run_once_on(b)
