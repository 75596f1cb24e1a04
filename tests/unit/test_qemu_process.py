"""A process that outlives us, shown with a shell in QEMU's place."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path

import pytest

from sterna.errors import QEMUMissing
from sterna.model.vm import QEMUProcess
from sterna.qemu.process import Process, boot_id, spawn

SLEEP = ("sleep", "1000")


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 20))

    return run


@in_a_loop
async def test_it_ends_with_its_status_and_leaves_its_words(tmp_path: Path) -> None:
    script = "echo one; echo two >&2; cat; exit 7"
    process = await spawn(["sh", "-c", script], log=tmp_path / "log")
    assert await process.wait() == 7
    assert process.log_tail() == "one\ntwo"
    assert process.log_tail(1) == "two"
    assert not process.is_alive
    process.kill()  # of one that has ended: nothing happens


@in_a_loop
async def test_a_log_is_continued_and_private(tmp_path: Path) -> None:
    for _ in range(2):
        await (await spawn(["echo", "again"], log=tmp_path / "log")).wait()
    assert (tmp_path / "log").read_text() == "again\nagain\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@in_a_loop
async def test_it_has_a_session_of_its_own_and_no_signal_that_python_ignores_is_ignored(
    tmp_path: Path,
) -> None:
    process = await spawn(["cat", "/proc/self/status"], log=tmp_path / "log")
    await process.wait()
    status = dict(line.split(":\t", 1) for line in process.log_tail(100).splitlines())
    assert status["NSsid"] == str(process.pid)
    ignored, blocked = int(status["SigIgn"], 16), int(status["SigBlk"], 16)
    assert not any(ignored & 1 << one - 1 for one in (signal.SIGPIPE, signal.SIGXFSZ))
    assert blocked == 0


@in_a_loop
async def test_it_gets_the_files_it_is_given_and_no_others(tmp_path: Path) -> None:
    given, kept = os.pipe()
    script = 'cd /proc/$$/fd && echo "$(echo *)"'
    process = await spawn(["sh", "-c", script], log=tmp_path / "log", fds=[given])
    assert await process.wait() == 0
    seen = {int(number) for number in process.log_tail().split()}
    assert given in seen
    assert kept not in seen
    assert {0, 1, 2} <= seen
    os.close(given)
    os.close(kept)


@in_a_loop
async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(QEMUMissing, match="no QEMU at /nowhere/qemu: No such file"):
        await spawn(["/nowhere/qemu"], log=tmp_path / "log")


@in_a_loop
async def test_it_is_found_again_by_what_was_written_down(tmp_path: Path) -> None:
    process = await spawn(SLEEP, log=tmp_path / "log")
    identity = process.identity("tcg")
    again = Process.adopt(identity)
    assert again is not None
    assert again.pid == process.pid
    assert again.is_alive
    again.terminate()
    statuses = await asyncio.gather(process.wait(), again.wait())
    assert sorted(statuses, key=str) == [-signal.SIGTERM, None]  # one of the two reaped it
    assert Process.adopt(identity) is None
    with pytest.raises(ProcessLookupError):  # not even a zombie
        os.kill(identity.pid, 0)


@in_a_loop
async def test_another_process_with_its_number_is_not_taken_for_it(tmp_path: Path) -> None:
    process = await spawn(SLEEP, log=tmp_path / "log")
    identity = process.identity("tcg")
    assert identity.boot_id == boot_id()
    assert Process.adopt(replace(identity, start_ticks=identity.start_ticks + 1)) is None
    assert Process.adopt(replace(identity, boot_id="another boot")) is None
    process.kill()
    assert await process.wait() == -signal.SIGKILL


def test_a_dead_one_that_nobody_reaped_is_dead(tmp_path: Path) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        identity = QEMUProcess(pid=pid, start_ticks=ticks, boot_id=boot_id(), accel="tcg")
        assert Process.adopt(identity) is None
    finally:
        os.waitpid(pid, 0)


@in_a_loop
async def test_waiting_can_be_given_up_without_harm(tmp_path: Path) -> None:
    process = await spawn(SLEEP, log=tmp_path / "log")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await process.wait()
    assert process.is_alive
    process.kill()
    assert await process.wait() == -signal.SIGKILL


def test_it_outlives_the_event_loop(tmp_path: Path) -> None:
    async def start() -> int:
        return (await spawn(SLEEP, log=tmp_path / "log")).pid

    pid = asyncio.run(start())
    try:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
