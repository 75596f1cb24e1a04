"""Several VMs as one operation, over a real runner: what the parts do is made up, not how they are run."""

from __future__ import annotations

import asyncio
import contextlib

from operations_rig import a_runner, in_loop, read
from sterna.errors import Conflict, MoveFailed, MoveRefused, VMNotFound
from sterna.fleet.convoy import Convoy, Local, concluded
from sterna.fleet.several import settle
from sterna.model.operation import OperationState
from sterna.model.several import Part


class Road(Local):
    """Parts that do what their names say, each as an operation of the runner."""

    def __init__(self, runner, parent):
        self._runner, self._parent = runner, parent
        self.go, self.begun = asyncio.Event(), []

    async def begin(self, part):
        self.begun.append(part.vm)
        if part.vm == "refused":
            raise MoveRefused(vm=part.vm, target="b", summary="it may not", fix="let it")
        if part.vm == "gone":
            raise VMNotFound(vm=part.vm, host="alpha")

        async def work(job):
            if part.vm.startswith("slow"):
                job.sample({"total": 100, "remaining": 50})
                await self.go.wait()
            if part.vm == "fails":
                raise MoveFailed(vm=part.vm, target="b", phase="memory", reason="no", fix="again")
            if part.vm == "warned":
                job.warn("mind the gap")
            return {}

        return self._runner.start(
            "move", vm=part.vm, vm_id=part.vm_id, work=work, parent=self._parent
        ).id

    async def has_left(self, part):
        return True


def parts(*names):
    return [Part(vm=name, vm_id=f"id-{name}", source="a", target="b") for name in names]


def states(operation):
    return {one["vm"]: one["state"] for one in operation.result["vms"]}


def begin(runner, *names):
    """The operation, and the road that its parts take."""
    roads = []

    async def work(job):
        roads.append(Road(runner, job.id))
        return concluded(await Convoy(job, roads[0], parts(*names)).run(), job.id)

    return runner.start("moves", vm="", work=work), roads


async def until(condition):
    while not condition():  # noqa: ASYNC110 - of what a runner tells nobody
        await asyncio.sleep(0.01)


@in_loop
async def test_one_that_fails_stops_no_other_and_each_is_told(tmp_path):
    async with a_runner(tmp_path) as runner:
        one, _ = begin(runner, "good", "refused", "fails", "gone", "warned")
        ended = await runner.wait(one.id)
        assert ended.state is OperationState.PARTIAL
        assert ended.error["exit_code"] == 11
        assert states(ended) == {
            "good": "moved",
            "refused": "refused",
            "fails": "failed",
            "gone": "skipped",
            "warned": "moved",
        }
        assert (
            "2 of 4 VMs moved; refused did not: it may not; fails did not" in ended.error["title"]
        )
        assert [part.parent for part in await runner.parts(one.id)] == [one.id] * 3
        assert {step.name: step.state for step in ended.steps} == {
            "good": "done",
            "refused": "failed",
            "fails": "failed",
            "warned": "done",
        }
        samples = [event for event in await read(runner, one.id) if event.kind == "progress"]
        assert '"vms":4,"vms_moved":2,"vms_ended":4' in samples[-1].data.replace(" ", "")


@in_loop
async def test_the_exit_code_says_whether_any_has_moved(tmp_path):
    async with a_runner(tmp_path) as runner:
        for names, code in ((("refused",), 3), (("fails", "refused"), 1), (("fails", "good"), 11)):
            ended = await runner.wait(begin(runner, *names)[0].id)
            assert ended.error["exit_code"] == code
        assert (await runner.wait(begin(runner, "good")[0].id)).state is OperationState.SUCCEEDED
        assert (await runner.wait(begin(runner, "warned")[0].id)).state is OperationState.WARNED
        ended = await runner.wait(begin(runner, "gone")[0].id)
        assert ended.result["text"] == "there was nothing to move"


@in_loop
async def test_a_cancel_cancels_those_under_way_and_waits_for_their_end(tmp_path):
    async with a_runner(tmp_path) as runner:
        one, roads = begin(runner, "good", "slow1", "slow2")
        await until(lambda: len(runner.active()) == 3 and len(roads[0].begun) == 3)
        await until(lambda: runner.live(one.id).progress.get("vms_ended") == 1)
        await runner.cancel(one.id)
        ended = await runner.wait(one.id)
        assert ended.state is OperationState.CANCELLED
        assert ended.error["exit_code"] == 7
        assert states(ended) == {"good": "moved", "slow1": "cancelled", "slow2": "cancelled"}
        assert "1 of 3 VMs had moved" in ended.error["title"]
        assert runner.active() == ()


@in_loop
async def test_after_a_restart_the_whole_ends_when_its_parts_have_ended(tmp_path):
    async with a_runner(tmp_path) as runner:
        one, roads = begin(runner, "good", "slow")
        await until(lambda: roads and len(roads[0].begun) == 2)
        await until(lambda: states(runner.live(one.id))["good"] == "moved")
    async with a_runner(tmp_path) as runner:
        left = {found.kind: found for found in await runner.unfinished()}
        assert left["moves"].id == one.id

        async def undone(job):
            raise MoveFailed(vm="slow", target="b", phase="memory", reason="sternad ended", fix="-")

        settler = settle(runner, lambda job: Road(runner, job.id), "sterna host drain")
        runner.resume(left["moves"], settler(left["moves"]))
        runner.resume(left["move"], undone)
        ended = await runner.wait(one.id)
        assert ended.state is OperationState.PARTIAL
        assert states(ended) == {"good": "moved", "slow": "failed"}
        assert "sternad ended" in ended.error["title"]


@in_loop
async def test_what_had_not_begun_before_a_restart_does_not_begin_after_it(tmp_path):
    async with a_runner(tmp_path) as runner:
        never = asyncio.Event()

        class Blocked(Road):
            async def begin(self, part):
                await never.wait()

        async def work(job):
            return concluded(await Convoy(job, Blocked(runner, job.id), parts("web")).run(), job.id)

        one = runner.start("drain", vm="", work=work)
        await until(lambda: runner.live(one.id).result)
    async with a_runner(tmp_path) as runner:
        (left,) = await runner.unfinished()
        settler = settle(runner, lambda job: Road(runner, job.id), "sterna host drain")
        runner.resume(left, settler(left))
        ended = await runner.wait(one.id)
        assert states(ended) == {"web": "cancelled"}
        assert ended.error["hint"] == "Go on with: sterna host drain"


@in_loop
async def test_the_whole_is_in_doubt_only_while_all_that_is_left_is(tmp_path):
    async with a_runner(tmp_path) as runner:
        asked = asyncio.Event()

        class Doubtful(Road):
            async def begin(self, part):
                async def work(job):
                    job.unknown(Conflict(detail="who knows"))
                    await asked.wait()
                    job.known()
                    return {}

                return self._runner.start("move", vm=part.vm, vm_id=part.vm_id, work=work).id

        async def work(job):
            return concluded(
                await Convoy(job, Doubtful(runner, job.id), parts("web")).run(), job.id
            )

        one = runner.start("moves", vm="", work=work)
        await until(lambda: runner.live(one.id).state is OperationState.UNKNOWN)
        assert runner.live(one.id).error["exit_code"] == 9
        with contextlib.suppress(Conflict):
            asked.set()
        ended = await runner.wait(one.id)
        assert ended.state is OperationState.SUCCEEDED
        assert ended.error == {}
