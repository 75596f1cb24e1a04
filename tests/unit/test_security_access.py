"""Lock-outs, sessions and roles over time, without servers."""

import asyncio
from dataclasses import replace

import pytest

from operations_rig import in_loop
from sterna import clock
from sterna.errors import LockedOut
from sterna.model.access import Role
from sterna.model.trust import PeerRecord
from sterna.security import identity, lockout, sessions
from sterna.security.lockout import Lockout
from sterna.security.passwords import MAX_WAITING, Lane
from sterna.security.sessions import Sessions
from sterna.security.trust import Trust


def test_each_role_may_do_what_those_before_it_may():
    order = list(Role)
    for one in order:
        assert [one.covers(other) for other in order] == [
            order.index(other) <= order.index(one) for other in order
        ]


def wait_of(one: Lockout, user: str, address: str) -> float:
    try:
        one.require_open(user, address)
    except LockedOut as error:
        return error.facts["seconds"]
    return 0


@in_loop
async def test_who_fails_waits_longer_each_time_but_never_for_ever(tmp_path, monkeypatch):
    now = [1_000_000.0]
    monkeypatch.setattr(lockout.time, "time", lambda: now[0])
    one = Lockout(tmp_path, "alpha")
    waits = []
    for number in range(16):
        waits.append(wait_of(one, "alice", f"10.0.0.{number}"))
        await one.failed("alice", f"10.0.0.{number}")
    assert waits[:5] == [0] * 5
    assert [round(wait) for wait in waits[5:10]] == [30, 60, 120, 240, 480]
    assert max(waits) <= lockout.LONGEST_S + 1
    again = Lockout(tmp_path, "alpha")  # a restart
    assert wait_of(again, "alice", "10.9.9.9") > 800
    assert wait_of(again, "bob", "10.9.9.9") == 0
    now[0] -= 1e6  # the clock is set back
    assert wait_of(again, "alice", "10.9.9.9") <= lockout.LONGEST_S + 1
    now[0] += 1e6 + lockout.LONGEST_S
    assert wait_of(again, "alice", "10.9.9.9") == 0
    await again.forgive("alice")
    assert wait_of(Lockout(tmp_path, "alpha"), "alice", "") == 0
    text = (tmp_path / "log-ins.json").read_text()
    assert "alice" not in text
    assert "10.0.0" not in text


@in_loop
async def test_an_address_that_tries_many_names_waits_too(tmp_path, monkeypatch):
    monkeypatch.setattr(lockout, "MAX_KEPT", 50)
    one = Lockout(tmp_path, "alpha")
    for number in range(lockout.FREE["address"]):
        assert wait_of(one, f"user-{number}", "10.0.0.9") == 0
        await one.failed(f"user-{number}", "10.0.0.9")
    assert wait_of(one, "user-x", "10.0.0.9") > 20
    assert wait_of(one, "user-x", "10.0.0.8") == 0
    for number in range(60):
        await one.failed(f"other-{number}", f"10.1.0.{number}")
    assert len(one._now.count) <= 50


def test_sessions_end_by_time_by_number_and_with_their_user(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    all_ = Sessions()
    name, made = all_.begin("alice")
    assert len(name) == 43
    assert name not in repr(made) + str(all_._open)
    now[0] += sessions.IDLE_S - 1
    assert all_.of(name) is made
    now[0] += sessions.IDLE_S + 1
    assert all_.of(name) is None
    name, _ = all_.begin("alice")
    began = now[0]
    while all_.of(name) is not None and now[0] - began < 3 * sessions.LONGEST_S:
        now[0] += sessions.IDLE_S / 2
    assert sessions.LONGEST_S < now[0] - began <= sessions.LONGEST_S + sessions.IDLE_S
    names = [all_.begin("bob")[0] for _ in range(sessions.MAX_OF_ONE + 1)]
    carol, _ = all_.begin("carol")
    assert all_.of(names[0]) is None
    assert all_.of(names[1]) is not None
    all_.end_of("bob")
    assert not [one for one in names if all_.of(one)]
    assert all_.of(carol) is not None
    for number in range(sessions.MAX_OPEN):
        all_.begin(f"user-{number}")
    assert len(all_._open) <= sessions.MAX_OPEN


@in_loop
async def test_few_log_ins_wait_for_their_turn(tmp_path):
    lane = Lane("alpha")
    turn = asyncio.Event()

    async def holds() -> None:
        async with lane:
            await turn.wait()

    waiting = [asyncio.ensure_future(holds()) for _ in range(MAX_WAITING + 1)]
    await asyncio.sleep(0)
    with pytest.raises(LockedOut):
        async with lane:
            pass
    turn.set()
    await asyncio.gather(*waiting)
    async with lane:
        pass


@in_loop
async def test_a_host_that_is_paired_again_has_no_more_rights_than_before(tmp_path):
    own = identity.ensure(tmp_path / "own", "alpha", "")
    pem = identity.ensure(tmp_path / "beta", "beta", "").pem
    trust = Trust(tmp_path / "peers", own)
    record = PeerRecord(name="beta", url="https://127.0.0.1:7443", certificate=pem)
    await trust.put(record)
    caller = trust.who(identity.fingerprint(pem))
    assert caller is not None
    assert caller.role is Role.ADMIN
    await trust.set_role("beta", "none")
    await trust.put(replace(record, url="https://127.0.0.2:7443"))
    found = Trust(tmp_path / "peers", own).who(identity.fingerprint(pem))
    assert found is not None
    assert found.role is None
