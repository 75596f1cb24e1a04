import asyncio
import contextlib
import json
import logging
import threading

import pytest

from operations_rig import a_runner, in_loop, read, texts
from sterna.errors import (
    MoveCancelled,
    MoveFailed,
    MoveLeftovers,
    MoveUnknown,
    NotCancellable,
    OperationEnded,
    OperationExists,
    OperationNotFound,
    Stopping,
    TooLateToCancel,
)
from sterna.operations import runner as runner_module
from sterna.operations.runner import Job

FAILED = MoveFailed(vm="v", target="b", phase="memory", reason="link", fix="mend it")
LEFT = MoveLeftovers(vm="v", outcome="did not move", leftovers="a file", fix="remove it")
GONE = MoveCancelled(vm="v", target="b", phase="memory")


async def returns(_: Job) -> dict:
    return {"total_s": 1.5}


async def warns(job: Job) -> dict:
    job.warn("slow link")
    return {"warnings": ["old QEMU"]}


async def reports_warnings(_: Job) -> dict:
    return {"warnings": ["old QEMU"]}


def raising(error: BaseException):
    async def work(_: Job) -> dict:
        raise error

    return work


async def fails_in_a_group(_: Job) -> dict:
    async with asyncio.TaskGroup() as group:
        group.create_task(raising(FAILED)(_))
        group.create_task(raising(LEFT)(_))
    return {}


async def cancels_itself(_: Job) -> dict:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("work", "state", "code"),
    [
        (returns, "succeeded", None),
        (warns, "warned", None),
        (reports_warnings, "warned", None),
        (raising(FAILED), "failed", "move.failed"),
        (raising(LEFT), "partial", "move.leftovers"),
        (raising(GONE), "cancelled", "move.cancelled"),
        (raising(ZeroDivisionError("surprise")), "failed", "internal"),
        (raising(ExceptionGroup("several", [FAILED])), "failed", "move.failed"),
        (raising(ExceptionGroup("several", [FAILED, LEFT])), "partial", "move.leftovers"),
        (raising(ExceptionGroup("several", [ValueError("x")])), "failed", "internal"),
        (cancels_itself, "failed", "internal"),
    ],
)
@in_loop
async def test_an_operation_ends_as_its_work_says(tmp_path, work, state, code):
    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", vm="v", vm_id="1", work=work)
        assert begun.state == "queued"
        ended = await runner.wait(begun.id, 10)
        assert ended.state == state
        assert ended.ended
        assert not ended.cancellable
        assert ended.error.get("code") == code
        await runner.journal.flush()
        assert await runner.journal.get(begun.id) == ended
        assert runner.active() == ()
        if state == "warned":
            assert ended.result["warnings"][0] == "old QEMU"


@in_loop
async def test_a_group_of_failures_that_left_something_says_so(tmp_path):
    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=fails_in_a_group)
        assert (await runner.wait(begun.id, 10)).state in ("failed", "partial")


@in_loop
async def test_an_unexpected_failure_leaves_a_traceback_in_the_log_not_in_the_answer(
    tmp_path, caplog
):
    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=raising(ZeroDivisionError("surprise")))
        ended = await runner.wait(begun.id, 10)
        assert ended.error["title"] == "unexpected ZeroDivisionError: surprise"
        assert any(record.exc_info for record in caplog.records)


@in_loop
async def test_steps_tell_their_time_and_sentence_and_the_log_is_a_diary(tmp_path):
    async def work(job: Job) -> dict:
        job.phase = "reserve"
        async with job.step("reserve") as step:
            step.say("b holds 512 MiB")
        job.phase = "memory"
        with contextlib.suppress(MoveFailed):
            async with job.step("copy"):
                raise FAILED
        async with job.step("release") as step:
            step.undone("b gave it back")
        async with job.step("quiet"):
            pass
        job.log("a last word", level="warning")
        return {}

    async with a_runner(tmp_path) as runner:
        ended = await runner.wait(runner.start("move", work=work).id, 10)
        assert ended.state == "succeeded"
        assert ended.phase == "memory"
        told = [(step.name, step.state, step.text) for step in ended.steps]
        assert told == [
            ("reserve", "done", "b holds 512 MiB"),
            ("copy", "failed", FAILED.message),
            ("release", "undone", "b gave it back"),
            ("quiet", "done", ""),
        ]
        assert all(step.seconds is not None for step in ended.steps)
        lines = await runner.journal.lines(ended.id)
        assert [(line.number, line.level, line.text) for line in lines] == [
            (1, "info", "reserve: b holds 512 MiB"),
            (2, "error", f"copy: {FAILED.message}"),
            (3, "info", "release: b gave it back"),
            (4, "warning", "a last word"),
        ]


@in_loop
async def test_the_newest_sample_is_the_progress_and_all_are_kept(tmp_path):
    async def work(job: Job) -> dict:
        for number in range(10):
            job.sample({"transferred": number, "rate": float("nan") if number == 3 else 1.0})
        return {}

    async with a_runner(tmp_path) as runner:
        ended = await runner.wait(runner.start("move", work=work).id, 10)
        assert ended.progress["transferred"] == 9
        samples = await runner.journal.samples(ended.id)
        assert [one["transferred"] for one in samples] == list(range(10))
        assert samples[3]["rate"] is None


# ---- cancel ----------------------------------------------------------------------------------


@in_loop
async def test_a_cancel_that_races_with_the_end_tells_the_truth(tmp_path):
    """Whatever the loop's turn at which it comes: succeeded only if the work got to its end."""
    states = set()
    async with a_runner(tmp_path) as runner:
        for turns in range(14):
            done: list[str] = []

            async def work(_: Job, done: list[str] = done) -> dict:
                try:
                    for _turn in range(4):
                        await asyncio.sleep(0)
                except asyncio.CancelledError:
                    done.append("undone")
                    raise
                done.append("done")
                return {}

            begun = runner.start("move", work=work)
            await until_running(runner, begun.id)
            for _ in range(turns):
                await asyncio.sleep(0)
            refused = False
            try:
                assert (await runner.cancel(begun.id)).state == "cancelling"
            except OperationEnded:
                refused = True
            ended = await runner.wait(begun.id, 10)
            states.add(ended.state)
            assert done == (["done"] if ended.state == "succeeded" else ["undone"])
            assert ended.state == ("succeeded" if refused else "cancelled")
            numbers = [event.number for event in await read(runner, begun.id)]
            assert numbers == sorted(set(numbers))
    assert states == {"succeeded", "cancelled"}


@in_loop
async def test_a_cancel_before_the_first_instruction_still_ends_it(tmp_path):
    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=returns)
        await runner.cancel(begun.id)
        ended = await runner.wait(begun.id, 10)
        assert ended.state == "cancelled"
        assert ended.error["code"] == "operation.cancelled"


@in_loop
async def test_a_second_cancel_does_not_disturb_the_undo_of_the_first(tmp_path):
    undoing, go_on = asyncio.Event(), asyncio.Event()
    undone: list[bool] = []

    async def work(job: Job) -> dict:
        try:
            await asyncio.Event().wait()
        finally:
            assert job.stopped_by == "user"
            undoing.set()
            await go_on.wait()
            undone.append(True)

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await until_running(runner, begun.id)
        await runner.cancel(begun.id)
        await undoing.wait()
        for _ in range(3):
            assert (await runner.cancel(begun.id)).state == "cancelling"
            await asyncio.sleep(0)
        go_on.set()
        assert (await runner.wait(begun.id, 10)).state == "cancelled"
        assert undone == [True]
        with pytest.raises(OperationEnded):
            await runner.cancel(begun.id)


async def until_running(runner, operation: str) -> None:
    while runner.live(operation).state == "queued":  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)


@in_loop
async def test_in_the_handover_it_is_too_late_and_afterwards_it_is_not(tmp_path):
    gates = [asyncio.Event() for _ in range(4)]

    async def work(job: Job) -> dict:
        with job.uncancellable():
            with job.uncancellable():
                gates[0].set()
                await gates[1].wait()
            assert not job.operation.cancellable
        gates[2].set()
        await gates[3].wait()
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await gates[0].wait()
        with pytest.raises(TooLateToCancel):
            await runner.cancel(begun.id)
        assert runner.live(begun.id).state == "running"
        assert not runner.live(begun.id).cancellable
        gates[1].set()
        await gates[2].wait()
        assert runner.live(begun.id).cancellable
        await runner.cancel(begun.id)
        assert (await runner.wait(begun.id, 10)).state == "cancelled"


@in_loop
async def test_work_that_ends_although_it_was_cancelled_has_succeeded(tmp_path):
    async def work(job: Job) -> dict:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return {"done": job.stopped_by}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await until_running(runner, begun.id)
        await runner.cancel(begun.id)
        ended = await runner.wait(begun.id, 10)
        assert (ended.state, ended.result) == ("succeeded", {"done": "user"})


@in_loop
async def test_what_cannot_be_cancelled_says_so_and_what_is_not_there_too(tmp_path):
    gate = asyncio.Event()

    async def work(_: Job) -> dict:
        await gate.wait()
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("receive", work=work, cancellable=False)
        with pytest.raises(NotCancellable):
            await runner.cancel(begun.id)
        with pytest.raises(OperationNotFound):
            await runner.cancel("nobody")
        with pytest.raises(OperationNotFound):
            await runner.get("nobody")
        with pytest.raises(OperationExists):
            runner.start("move", work=work, id=begun.id)
        gate.set()
        await runner.wait(begun.id, 10)
        with pytest.raises(OperationExists):
            runner.start("move", work=work, id=begun.id)


@in_loop
async def test_doubt_is_a_state_that_work_goes_on_in_and_leaves(tmp_path):
    doubt, clear = asyncio.Event(), asyncio.Event()

    async def work(job: Job) -> dict:
        job.unknown(MoveUnknown(vm="v", target="b", operation=job.id))
        doubt.set()
        await clear.wait()
        job.known()
        assert job.operation.state == "running"
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await doubt.wait()
        assert runner.live(begun.id).state == "unknown"
        assert runner.live(begun.id).error["code"] == "move.unknown"
        with pytest.raises(TooLateToCancel):
            await runner.cancel(begun.id)
        assert (await runner.wait(begun.id, 0.01)).state == "unknown"
        clear.set()
        ended = await runner.wait(begun.id, 10)
        assert (ended.state, ended.error) == ("succeeded", {})


@in_loop
async def test_work_that_ends_in_doubt_is_unfinished_and_can_be_resumed(tmp_path):
    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=raising(MoveUnknown(vm="v", target="b", operation="x")))
        following = asyncio.ensure_future(read(runner, begun.id))
        waiting = asyncio.ensure_future(runner.wait(begun.id))
        while runner.live(begun.id).state != "unknown":  # noqa: ASYNC110
            await asyncio.sleep(0)
        doubtful = await runner.wait(begun.id, 0.01)
        assert doubtful.state == "unknown"
        with pytest.raises(TooLateToCancel):
            await runner.cancel(begun.id)
        runner.resume(doubtful, returns)
        ended = await runner.wait(begun.id, 10)
        assert (ended.state, ended.error) == ("succeeded", {})
        assert await waiting == ended
        assert json.loads((await following)[-1].data)["state"] == "succeeded"


# ---- shutdown and the next start -------------------------------------------------------------


@in_loop
async def test_a_shutdown_leaves_work_unfinished_and_the_next_start_resumes_it(tmp_path):
    seen: list[str] = []

    async def work(job: Job) -> dict:
        job.phase = "memory"
        job.log("one")
        async with job.step("copy"):
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(job.stopped_by)

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", vm="v", vm_id="1", work=work)
        await until_running(runner, begun.id)
        waiting = asyncio.ensure_future(runner.wait(begun.id))
        following = asyncio.ensure_future(read(runner, begun.id))
        await asyncio.sleep(0)
        await runner.close()
        assert seen == ["shutdown"]
        assert (await waiting).state == "running"
        first_life = await following
        with pytest.raises(Stopping):
            runner.start("move", work=work)
    async with a_runner(tmp_path) as runner:
        (left,) = await runner.unfinished()
        assert (left.id, left.state, left.phase) == (begun.id, "running", "memory")
        (copy,) = left.steps
        assert (copy.state, copy.text) == ("failed", "interrupted: sternad is stopping")

        async def settle(job: Job) -> dict:
            job.log("settled")
            raise FAILED

        runner.resume(left, settle)
        assert await runner.unfinished() == ()
        ended = await runner.wait(left.id, 10)
        assert ended.state == "failed"
        lines = await runner.journal.lines(left.id)
        assert [line.number for line in lines] == [1, 2, 3]
        last = first_life[-1].number
        new = await read(runner, left.id, after=last)
        assert texts(new) == ["settled"]
        assert json.loads(new[-1].data)["state"] == "failed"
    async with a_runner(tmp_path) as runner:
        assert await runner.unfinished() == ()


@in_loop
async def test_a_crash_in_a_step_is_told_as_an_interruption(tmp_path):
    async def work(job: Job) -> dict:
        async with job.step("copy"):
            await asyncio.Event().wait()

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await until_running(runner, begun.id)
        crashed = runner.live(begun.id)
        assert crashed.steps[0].state == "running"
    async with a_runner(tmp_path) as runner:
        runner.resume(crashed, returns)
        ended = await runner.wait(begun.id, 10)
        assert (ended.steps[0].state, ended.state) == ("failed", "succeeded")


@in_loop
async def test_a_shutdown_lets_a_handover_end(tmp_path):
    inside, go_on = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def work(job: Job) -> dict:
        with job.uncancellable():
            inside.set()
            await go_on.wait()
            seen.append("handed over")
        seen.append(job.stopped_by)
        await asyncio.sleep(0)
        seen.append("not reached")
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await inside.wait()
        closing = asyncio.ensure_future(runner.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go_on.set()
        await closing
        assert seen == ["handed over", "shutdown"]
        assert runner.live(begun.id).state == "running"


@in_loop
async def test_a_shutdown_in_the_undo_of_a_cancel_lets_the_undo_end(tmp_path):
    undoing, go_on = asyncio.Event(), asyncio.Event()

    async def work(_: Job) -> dict:
        try:
            await asyncio.Event().wait()
        finally:
            undoing.set()
            await go_on.wait()

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await until_running(runner, begun.id)
        await runner.cancel(begun.id)
        await undoing.wait()
        closing = asyncio.ensure_future(runner.close())
        await asyncio.sleep(0)
        go_on.set()
        await closing
        assert (await runner.get(begun.id)).state == "cancelled"


@in_loop
async def test_work_that_does_not_heed_a_shutdown_does_not_hold_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "HANDOVER_S", 0.05)
    monkeypatch.setattr(runner_module, "UNDO_S", 0.05)
    release = asyncio.Event()

    async def work(_: Job) -> dict:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await until_running(runner, begun.id)
        await runner.close()
        assert runner.live(begun.id).state == "running"
        release.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@in_loop
async def test_background_work_is_told_when_it_fails_and_ends_with_the_daemon(tmp_path, caplog):
    async with a_runner(tmp_path) as runner:
        watch = runner.background(asyncio.Event().wait(), "watch")
        runner.background(raising(ValueError("lost"))(None), "poll")
        await asyncio.sleep(0.01)
        assert "background task poll failed" in caplog.text
    assert watch.cancelled()


# ---- the journal fails, the work does not ----------------------------------------------------


@in_loop
async def test_a_full_disk_does_not_disturb_the_work_or_those_who_follow_it(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    gate = asyncio.Event()

    async def work(job: Job) -> dict:
        job.log("before")
        await gate.wait()
        async with job.step("copy") as step:
            for number in range(50):
                job.sample({"n": number, "words": "x" * 400})
                job.log(f"line {number} " + "x" * 400)
                await asyncio.sleep(0)
            step.say("copied")
        return {"words": "x" * 20_000}  # no page that is there already has room for it

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", vm="v", work=work)
        await until_running(runner, begun.id)
        await runner.journal.flush()
        connection = runner.journal._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        following = asyncio.ensure_future(read(runner, begun.id))
        await asyncio.sleep(0.01)
        gate.set()
        ended = await runner.wait(begun.id, 10)
        assert ended.state == "succeeded"
        events = await following
        assert len(texts(events)) == 52
        assert json.loads(events[-1].data)["state"] == "succeeded"
        await runner.journal.flush()
        assert (await runner.journal.get(begun.id)).state == "running"
        assert (await runner.get(begun.id)).state == "succeeded"
        assert [one.state for one in await runner.list()] == ["succeeded"]
        assert await runner.list(state="running") == ()
        assert json.loads((await read(runner, begun.id))[-1].data)["state"] == "succeeded"
        assert caplog.text.count("cannot be written") == 1
        connection.execute("PRAGMA max_page_count = 100000")
        await runner.journal.flush()
        assert (await runner.journal.get(begun.id)).state == "succeeded"


@in_loop
async def test_a_disk_that_hangs_delays_work_by_a_moment_only(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(runner_module, "WRITE_S", 0.05)
    async with a_runner(tmp_path) as runner:
        hang = threading.Event()
        stuck = asyncio.ensure_future(runner.journal._ask(lambda _: hang.wait(20)))
        await asyncio.sleep(0)
        begun = runner.start("move", work=returns)
        assert (await runner.wait(begun.id, 5)).state == "succeeded"
        assert "begins without it" in caplog.text
        hang.set()
        await stuck


@in_loop
async def test_words_and_results_that_are_no_json_do_not_disturb_the_work(tmp_path):
    async def work(job: Job) -> dict:
        job.log("QEMU said \udcff\udcfe")
        job.sample({"path": tmp_path, "strange": object(), "words": "\udcff"})
        async with job.step("copy") as step:
            step.say("\udcff")
        job.unknown(MoveUnknown(vm="v\udcff", target="b", operation=job.id))
        job.known()
        job.phase = "tidy"
        return {"path": tmp_path, "bytes": b"\xff", "words": "\udcff"}

    async with a_runner(tmp_path) as runner:
        runner.hub.publish("vm", {"name": "\udcff"})
        begun = runner.start("move", work=work)
        ended = await runner.wait(begun.id, 10)
        assert ended.state == "succeeded"
        assert ended.result["path"] == str(tmp_path)
        assert texts(await read(runner, begun.id))[0] == "QEMU said ??"
        assert await runner.journal.get(begun.id) == ended

        async def fails(_: Job) -> dict:
            raise MoveFailed(vm="\udcff", target=object(), phase="x", reason="y", fix="z")

        begun = runner.start("move", work=fails)
        assert (await runner.wait(begun.id, 10)).state == "failed"
        assert runner.journal.problem == ""


# ---- following -------------------------------------------------------------------------------


async def chatty(job: Job) -> dict:
    for number in range(60):
        job.sample({"n": number})
        job.log(f"line {number}")
        if number % 5 == 0:
            job.phase = f"phase {number}"
        await asyncio.sleep(0.001 if number % 7 == 0 else 0)
    return {}


async def restless(runner, operation: str, patience: int) -> None:
    """Leaves after `patience` events and comes back with the last number, until there is no more."""
    seen, last = [], 0
    while True:
        async with contextlib.aclosing(runner.subscribe(operation, last)) as events:
            some = [event async for event in up_to(patience, events)]
        seen += some
        if len(some) < patience:
            break
        last = seen[-1].number
    numbers = [event.number for event in seen]
    assert numbers == sorted(set(numbers))
    assert texts(seen) == [f"line {number}" for number in range(60)]
    assert [json.loads(e.data)["n"] for e in seen if e.kind == "progress"] == list(range(60))
    assert json.loads(seen[-1].data)["state"] == "succeeded"


async def up_to(count, events):
    async for event in events:
        yield event
        count -= 1
        if not count:
            return


@in_loop
async def test_whenever_a_reader_comes_and_comes_back_nothing_is_lost_or_told_twice(tmp_path):
    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=chatty)
        async with asyncio.TaskGroup() as group:
            for patience in (1, 2, 3, 7, 20, 1000):
                group.create_task(restless(runner, begun.id, patience))
            for turn in range(40):
                await asyncio.sleep(0 if turn % 3 else 0.001)
                group.create_task(restless(runner, begun.id, 1000 - turn))
        await restless(runner, begun.id, 5)


@in_loop
async def test_a_slow_reader_is_cut_off_and_can_come_back(tmp_path):
    read_one, finish = asyncio.Event(), asyncio.Event()

    async def work(job: Job) -> dict:
        await read_one.wait()
        for number in range(3000):
            job.log(f"line {number}")
        await finish.wait()
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        await until_running(runner, begun.id)
        seen = []
        async with contextlib.aclosing(runner.subscribe(begun.id)) as events:
            async for event in events:
                seen.append(event)
                if event.kind == "state":
                    read_one.set()
                    while runner._live[begun.id].line < 3000:  # noqa: ASYNC110
                        await asyncio.sleep(0)
        assert len(texts(seen)) < 3000
        finish.set()
        seen += await read(runner, begun.id, seen[-1].number)
        assert texts(seen) == [f"line {number}" for number in range(3000)]


@in_loop
async def test_a_reader_that_leaves_is_forgotten(tmp_path):
    async with a_runner(tmp_path) as runner:
        gate = asyncio.Event()

        async def work(_: Job) -> dict:
            await gate.wait()
            return {}

        begun = runner.start("move", work=work)
        await until_running(runner, begun.id)
        subscribers = runner._live[begun.id].subscribers
        async with contextlib.aclosing(runner.subscribe(begun.id)) as events:
            await anext(events)
            assert len(subscribers) == 1
        assert len(subscribers) == 0
        following = asyncio.ensure_future(read(runner, begun.id))
        await asyncio.sleep(0.01)
        assert len(subscribers) == 1
        following.cancel()
        await asyncio.wait([following])
        assert len(subscribers) == 0
        gate.set()


@in_loop
async def test_waiting_ends_at_the_end_or_at_its_time(tmp_path):
    gate = asyncio.Event()

    async def work(_: Job) -> dict:
        await gate.wait()
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("stop", vm="v", vm_id="1", work=work)
        assert (await runner.wait(begun.id, 0.01)).state in ("queued", "running")
        assert [one.id for one in runner.active("v")] == [begun.id]
        assert [one.id for one in runner.active("1")] == [begun.id]
        assert runner.active("w") == ()
        gate.set()
        assert (await runner.wait(begun.id)).state == "succeeded"
        assert (await runner.wait(begun.id)).state == "succeeded"
        with pytest.raises(OperationNotFound):
            await runner.wait("nobody")


@in_loop
async def test_thousands_of_samples_stay_bounded_with_first_and_last(tmp_path):
    async def work(job: Job) -> dict:
        for number in range(5000):
            job.sample({"n": number})
            if number % 100 == 0:
                await asyncio.sleep(0)
        return {}

    async with a_runner(tmp_path) as runner:
        begun = runner.start("move", work=work)
        ended = await runner.wait(begun.id, 20)
        numbers = [one["n"] for one in await runner.journal.samples(ended.id)]
        assert numbers[0] == 0
        assert numbers[-1] == 4999
        assert len(numbers) <= runner.journal.limits.samples + 1
