"""The QMP sessions of a real QEMU: answers, events, silence, loss, and the way past a hang."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from qemu_rig import Machine, in_a_loop, machine, to_pre_switchover, until

from machines import SMALL, Variant
from sterna.errors import QEMULost, QMPError, QMPTimeout
from sterna.model.vm import QEMUProcess
from sterna.qemu.argv import RunPaths
from sterna.qemu.commands import Monitor
from sterna.qemu.process import Process, spawn
from sterna.qemu.session import Session
from sterna.qemu.sockets import cut_connections

pytestmark = pytest.mark.functional
VARIANT = Variant(SMALL)
SOON_S = 5.0  # long for an answer that is there at once, short for one that never comes


@in_a_loop
async def test_a_guest_is_continued_stopped_and_ended(tmp_path: Path) -> None:
    async with machine(VARIANT, tmp_path) as vm:
        assert await vm.qmp.query_status() == "prelaunch"
        with vm.session.listen("STOP", "RESUME") as events:
            await vm.qmp.cont()
            assert await vm.qmp.query_status() == "running"
            await vm.qmp.stop()
            assert [(await events.get(SOON_S))["event"] for _ in range(2)] == ["RESUME", "STOP"]
            with pytest.raises(TimeoutError):
                await events.get(0.01)
        await vm.qmp.announce_self()
        await vm.qmp.ping_oob()
        assert {"type": "chardev", "id": "control"} in await vm.qmp.query_yank()
        info = await vm.qmp.query_migrate()
        assert (info.status, info.socket_port, info.blocked_reasons) == ("none", 0, ())
        await vm.qmp.quit()
        assert await vm.process.wait() == 0
        await vm.qmp.quit()  # again: it is gone, as wanted


@in_a_loop
async def test_what_qemu_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    async with machine(VARIANT, tmp_path) as vm:
        with pytest.raises(QMPError, match="QEMU of tern refused migrate-continue: Migration"):
            await vm.qmp.migrate_continue("pre-switchover")
        with pytest.raises(QMPError, match="no-such-thing"):
            await vm.session.execute("no-such-thing")
        with pytest.raises(QMPError, match="yank"):
            await vm.qmp.yank_migration()
        await vm.qmp.ping()


@in_a_loop
async def test_the_death_of_qemu_ends_every_wait(tmp_path: Path) -> None:
    async with machine(VARIANT, tmp_path) as vm:
        with vm.session.listen("RESUME", "STOP") as events, vm.session.listen() as others:
            await vm.qmp.cont()
            os.kill(vm.process.pid, signal.SIGSTOP)
            waits = [
                asyncio.ensure_future(vm.qmp.query_status()),
                asyncio.ensure_future(vm.qmp.query_yank(timeout_s=60)),
                asyncio.ensure_future(_last(others)),
                asyncio.ensure_future(vm.session.lost.wait()),
            ]
            await asyncio.sleep(0)  # all have begun
            vm.process.kill()
            async with asyncio.timeout(SOON_S):
                outcomes = await asyncio.gather(*waits, return_exceptions=True)
            assert [type(one) for one in outcomes[:2]] == [QEMULost, QEMULost]
            assert outcomes[2] == "RESUME"
            assert (await events.get(SOON_S))["event"] == "RESUME"  # what came before its end
            for _ in range(2):
                with pytest.raises(QEMULost, match="QEMU of tern is gone: it closed"):
                    await events.get(SOON_S)
        assert vm.session.is_lost
        with pytest.raises(QEMULost):
            await vm.qmp.query_status()
        with vm.session.listen("STOP") as late, pytest.raises(QEMULost):
            await late.get(SOON_S)
        assert await vm.process.wait() == -signal.SIGKILL


async def _last(events) -> str:
    """The name of the last event before the loss."""
    name = ""
    try:
        async for event in events:
            name = event["event"]
    except QEMULost:
        return name
    raise AssertionError("events ended without a loss")


@in_a_loop
async def test_a_silent_qemu_is_told_from_a_dead_one(tmp_path: Path) -> None:
    async with machine(VARIANT, tmp_path) as vm:
        os.kill(vm.process.pid, signal.SIGSTOP)
        with pytest.raises(QMPTimeout, match="did not answer query-status within"):
            await vm.qmp.ping(0.2)
        with pytest.raises(QMPTimeout):
            await vm.qmp.ping_oob(0.2)
        assert not vm.session.is_lost
        os.kill(vm.process.pid, signal.SIGCONT)
        assert await vm.qmp.query_status() == "prelaunch"  # late answers harm nobody


@asynccontextmanager
async def hanging(folder: Path) -> AsyncIterator[Machine]:
    """A QEMU whose main loop hangs in the last copy to a target that is frozen."""
    incoming = Variant(SMALL, incoming=True)
    async with machine(VARIANT, folder / "a") as a, machine(incoming, folder / "b") as b:
        a.fill_memory(64 << 20)  # more than the sockets between the two can hold
        await a.qmp.cont()
        await to_pre_switchover(a, b, bandwidth=8 << 20, downtime_ms=2_000_000)
        os.kill(b.process.pid, signal.SIGSTOP)
        await a.qmp.migrate_continue("pre-switchover")

        async def hangs() -> bool:
            try:
                await a.qmp.ping(0.5)
            except QMPTimeout:
                return True
            return False

        await until(hangs)
        yield a


async def runs_again(qmp: Monitor) -> None:
    async def runs() -> bool:
        failed = (await qmp.query_migrate()).status == "failed"
        return failed and await qmp.query_status() == "running"

    await until(runs)


@in_a_loop
async def test_out_of_band_frees_a_main_loop_that_a_frozen_target_blocks(tmp_path: Path) -> None:
    async with hanging(tmp_path) as vm:
        await vm.qmp.ping_oob()
        await vm.qmp.yank_migration()
        await runs_again(vm.qmp)


@in_a_loop
async def test_a_daemon_that_restarts_during_the_hang_cuts_the_connection(tmp_path: Path) -> None:
    async with hanging(tmp_path) as vm:
        await vm.session.close()
        with pytest.raises(QMPTimeout):  # not let in, not even out of band
            await Session.connect("tern", vm.paths.control, vm.paths.oob, 0.5)
        assert cut_connections(vm.process.pid) == 1
        session = await Session.connect("tern", vm.paths.control, vm.paths.oob, SOON_S)
        await runs_again(Monitor(session))
        assert cut_connections(vm.process.pid) == 0
        await Monitor(session).quit()
        await vm.process.wait()
        await session.close()
        assert cut_connections(vm.process.pid) == 0


@in_a_loop
async def test_a_connection_that_nobody_answers_is_given_up_at_once(tmp_path: Path) -> None:
    """QEMU itself would wait for minutes, whoever cancels; its guest runs all the while."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address, crowd = deaf.getsockname(), []
        while True:  # until its backlog is full, and what comes then is not answered
            crowd.append(socket.socket())
            crowd[-1].setblocking(False)
            crowd[-1].connect_ex(address)
            if not select.select([], crowd[-1:], [], 0.2)[1]:
                break
        async with machine(VARIANT, tmp_path) as vm:
            await vm.qmp.cont()
            await vm.qmp.migrate(f"tcp:127.0.0.1:{address[1]}")
            assert (await vm.qmp.query_migrate()).status == "setup"

            async def is_cut() -> bool:
                return cut_connections(vm.process.pid, are_connecting=True) == 1

            await until(is_cut)  # its thread has begun
            await runs_again(vm.qmp)
            assert cut_connections(vm.process.pid, are_connecting=True) == 0
        for one in crowd:
            one.close()


@in_a_loop
async def test_closing_leaves_qemu_running_for_the_next_session(tmp_path: Path) -> None:
    async with machine(VARIANT, tmp_path) as vm:
        await vm.qmp.cont()
        os.kill(vm.process.pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(vm.qmp.query_status())
        with vm.session.listen("STOP") as events:
            await asyncio.sleep(0)  # the question is on its way
            await vm.session.close()
            for wait in (events.get(SOON_S), waiting):
                with pytest.raises(QEMULost, match="the connection was closed"):
                    await wait
        os.kill(vm.process.pid, signal.SIGCONT)
        await vm.session.close()  # again: nothing happens
        assert vm.process.is_alive
        session = await Session.connect("tern", vm.paths.control, vm.paths.oob)
        assert await Monitor(session).query_status() == "running"
        await session.close()


@in_a_loop
async def test_a_qemu_that_does_not_start_is_noticed_at_once(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    command = [*VARIANT.build(tmp_path), "-no-such-option"]
    started = await spawn(command, log=paths.log)
    async with asyncio.timeout(SOON_S):
        with pytest.raises(QEMULost):
            await Session.connect(
                "tern", paths.control, paths.oob, 60, is_alive=lambda: started.is_alive
            )
    assert await started.wait() == 1
    assert "no-such-option" in started.log_tail()
    with pytest.raises(QMPTimeout, match="did not answer at all within"):
        await Session.connect("tern", paths.control, paths.oob, 0.1)


# ---- after a restart of the daemon ---------------------------------------------------------

DAEMON = """
    import asyncio, json, os, signal, sys
    from dataclasses import asdict
    from pathlib import Path
    from machines import VARIANTS, RunPaths
    from qemu_rig import prepare, taps
    from sterna.qemu.commands import Monitor
    from sterna.qemu.process import spawn
    from sterna.qemu.session import Session

    async def main():
        folder, variant = Path(sys.argv[1]), VARIANTS["bios"]
        paths = RunPaths(folder)
        with taps(1) as fds:
            command = variant.build(folder, tap_fds={"net0": fds[0]}, **prepare(variant, folder))
            process = await spawn(command, log=paths.log, fds=fds)
        session = await Session.connect("tern", paths.control, paths.oob)
        await Monitor(session).cont()
        print(json.dumps(asdict(process.identity("tcg"))), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
"""


@in_a_loop
async def test_the_qemu_of_a_killed_daemon_is_found_again(tmp_path: Path) -> None:
    here = Path(__file__).parent
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(DAEMON), str(tmp_path)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}"},
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    process = Process.adopt(QEMUProcess(**json.loads(done.stdout)), RunPaths(tmp_path).log)
    assert process is not None
    try:
        paths = RunPaths(tmp_path)
        session = await Session.connect("tern", paths.control, paths.oob)
        assert await Monitor(session).query_status() == "running"
        network = await session.execute("query-rx-filter")
        assert [one["name"] for one in network] == ["nic-net0"]
        await Monitor(session).quit()
        assert await process.wait() is None  # not our child: nobody tells us how it ended
        await session.close()
    finally:
        process.kill()
    assert not process.is_alive
