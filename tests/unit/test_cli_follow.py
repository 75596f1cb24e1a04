"""Following an operation: its outcome is the exit code, through restarts, limits and Ctrl-C."""

import json
import os
import signal

import pytest

from standin import Operation
from sterna import errors
from sterna.cli import follow
from sterna.cli.progress import sample_text

REPORT = {
    "from": "hv-a", "to": "hv-b", "live": True, "total_s": 6.21, "pause_ms": 84.2,
    "pause_parts_ms": {"stop": 3.0, "memory": 61.5}, "bytes_memory": 600 << 20,
    "bytes_wire": 640 << 20, "rounds": 3, "carrier": "direct",
    "phases": {"plan": 0.1, "memory": 5.0}, "warnings": [],
}  # fmt: skip
SAMPLE = {"time_s": 1.0, "phase": "memory", "total": 1 << 30, "remaining": 256 << 20,
          "rate": 118e6, "dirty_rate": 50e6, "rounds": 2, "expected_pause_ms": 84.0}  # fmt: skip


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def moving(operation: Operation) -> None:
    operation.wait_watched()
    operation.phase("reserve")
    operation.step("reserve", "hv-b reserved 1 GiB", 0.4)
    operation.phase("memory")
    operation.sample(**SAMPLE)
    operation.log("the guest dirties much", "warning")
    operation.end("succeeded", REPORT)


@pytest.fixture
def vm(sternad):
    sternad.add_vm("web")
    return sternad


@pytest.fixture
def quick(monkeypatch):
    """Patience of a test instead of a person's."""
    monkeypatch.setattr(follow, "REGAIN_S", 0.3)
    monkeypatch.setattr(follow, "RETRY_S", 0.02)
    monkeypatch.setattr(follow, "DOUBT_S", 0.1)


def lines(result):
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_move_is_told_step_by_step_and_summed_up(sterna, vm):
    vm.play = moving
    result = sterna("move", "web", "hv-b", "--max-downtime", "100ms", "--bandwidth", "1Gbit",
                    "--deadline", "10m")  # fmt: skip
    assert result.code == 0
    assert vm.requests[0][2] == {
        "target": "hv-b", "max_downtime_ms": 100, "bandwidth": 125_000_000, "deadline_s": 600.0,
    }  # fmt: skip
    assert result.err.splitlines()[-4:] == [
        "move of web to hv-b: reserve",
        "  reserve     hv-b reserved 1 GiB (400 ms)",
        "move of web to hv-b: memory",
        "warning: the guest dirties much",
    ]
    assert result.out.splitlines() == [
        "web moved from hv-a to hv-b in 6.2 s; the pause was 84 ms",
        "  phases   plan 100 ms, memory 5.0 s",
        "  pause    stop 3 ms, memory 62 ms",
        "  memory   600 MiB of guest memory, 3 rounds, 640 MiB on the wire",
        "  carrier  direct",
    ]


def test_with_json_every_line_is_an_object_and_the_last_is_the_result(sterna, vm):
    vm.play = moving
    result = sterna("move", "web", "hv-b", "-o", "json")
    told = lines(result)
    assert result.err == ""
    operation = told[0]["operation"]
    assert {line["type"] for line in told[:-1]} == {"state", "progress", "log"}
    assert {"type": "progress", "operation": operation, **SAMPLE} in told
    assert told[-1] == {
        "type": "result", "state": "succeeded", "operation": operation, "vm": "web", **REPORT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "error", "code"),
    [
        ("succeeded", None, 0),
        ("warned", None, 10),
        ("failed", errors.MoveFailed(vm="web", target="b", phase="memory", reason="r", fix="f"), 1),
        ("failed", errors.MoveRefused(vm="web", target="b", summary="no", fix="f"), 3),
        ("failed", None, 1),
        ("cancelled", errors.MoveCancelled(vm="web", target="b", phase="memory"), 7),
        ("cancelled", None, 7),
        ("partial", errors.MoveLeftovers(vm="web", outcome="moved", leftovers="x", fix="f"), 11),
    ],
)
def test_the_exit_code_is_the_outcome(sterna, vm, state, error, code):
    vm.play = lambda op: op.end(state, error=error.problem() if error else None)
    result = sterna("move", "web", "hv-b")
    assert result.code == code
    if error is not None:
        assert f"sterna: {error.message}" in result.err
    as_json = sterna("move", "web", "hv-b", "-o", "json")
    assert as_json.code == code
    assert lines(as_json)[-1]["state"] == state
    assert lines(as_json)[-1].get("error", {}).get("code") == (error.code if error else None)


def test_a_move_that_is_refused_at_once_exits_3_with_a_result_line(sterna, vm):
    refusal = errors.MoveRefused(vm="web", target="hv-b", summary="no switch lan", fix="make it")
    vm.answer = lambda handler: handler.send(422, refusal.problem()) or True
    result = sterna("move", "web", "hv-b", "-o", "json")
    assert result.code == 3
    assert lines(result)[-1]["error"]["code"] == "move.refused"


def test_detach_prints_the_id_alone_and_the_operation_goes_on(sterna, vm):
    vm.play = lambda operation: operation.wait_watched()
    result = sterna("move", "web", "hv-b", "--detach")
    (operation,) = vm.operations.values()
    assert (result.code, result.out) == (0, f"{operation.id}\n")
    assert result.err == f"follow it with: sterna op wait {operation.id}\n"
    vm.play = lambda operation: operation.wait_watched()
    told = lines(sterna("vm", "stop", "web", "--detach", "-o", "json"))
    assert [line["state"] for line in told] == ["running"]
    for left in vm.operations.values():
        left.watched = 1
        left.set()


def test_the_following_survives_a_restart_of_the_daemon(sterna, vm, quick, monkeypatch):
    monkeypatch.setattr(follow, "REGAIN_S", 20.0)

    def play(operation: Operation) -> None:
        operation.sample(**SAMPLE)
        operation.wait_watched(1)
        vm.stop()
        operation.log("told while nobody listened")
        vm.start()
        operation.wait_watched(2)
        operation.end("succeeded", REPORT)

    vm.play = play
    result = sterna("move", "web", "hv-b", "-o", "json")
    told = lines(result)
    assert result.code == 0
    assert [line["text"] for line in told if line["type"] == "log"] == [
        "told while nobody listened"
    ]
    assert sum(line["type"] == "progress" for line in told) == 1


def test_a_daemon_that_stays_away_ends_the_following_not_the_operation(sterna, vm, quick):
    def play(operation: Operation) -> None:
        operation.wait_watched()
        vm.stop()

    vm.play = play
    result = sterna("move", "web", "hv-b")
    (operation,) = vm.operations
    assert result.code == 6
    assert result.err.splitlines()[-2].startswith("sterna: sternad at unix://")
    assert "was not back within 0.3 s" in result.err.splitlines()[-2]
    assert result.err.splitlines()[-1].endswith(f"sterna op wait {operation}")


def test_a_daemon_that_forgot_the_operation_is_an_answer(sterna, vm, quick, monkeypatch):
    monkeypatch.setattr(follow, "REGAIN_S", 20.0)

    def play(operation: Operation) -> None:
        operation.wait_watched()
        vm.operations.clear()
        vm.stop()
        vm.start()

    vm.play = play
    result = sterna("move", "web", "hv-b")
    assert result.code == 4
    assert "there is no operation" in result.err


def test_ctrl_c_cancels_and_waits_for_the_undo(sterna, vm):
    def play(operation: Operation) -> None:
        operation.wait_watched()
        press_ctrl_c()
        operation.wait_cancelled()
        operation.step("undo", "hv-b gave everything back")
        error = errors.MoveCancelled(vm="web", target="hv-b", phase="memory")
        operation.end("cancelled", error=error.problem())

    vm.play = play
    result = sterna("move", "web", "hv-b")
    assert result.code == 7
    assert "cancelling, and waiting until it is undone" in result.err
    assert "hv-b gave everything back" in result.err
    assert next(iter(vm.operations.values())).cancels == 1


def test_ctrl_c_twice_leaves_it_alone_and_says_how_to_follow(sterna, vm):
    def play(operation: Operation) -> None:
        operation.wait_watched(1)
        press_ctrl_c()
        operation.wait_watched(2)
        press_ctrl_c()

    vm.play = play
    result = sterna("move", "web", "hv-b")
    (operation,) = vm.operations.values()
    assert result.code == 8
    assert operation.cancels == 1
    assert result.err.splitlines()[-1] == f"fix: Follow it with: sterna op wait {operation.id}"


def test_ctrl_c_in_the_handover_is_too_late_and_says_so(sterna, vm):
    def play(operation: Operation) -> None:
        operation.wait_watched()
        late = errors.TooLateToCancel(operation=operation.id).problem()
        vm.answer = lambda h: h.path.endswith(":cancel") and (h.send(409, late) or True)
        press_ctrl_c()
        operation.wait_watched(2)
        operation.end("succeeded", REPORT)

    vm.play = play
    result = sterna("move", "web", "hv-b")
    assert result.code == 0
    assert "it is not cancelled: operation" in result.err


def test_ctrl_c_while_the_daemon_is_away_cancels_when_it_is_back(sterna, vm, quick, monkeypatch):
    monkeypatch.setattr(follow, "REGAIN_S", 20.0)

    def play(operation: Operation) -> None:
        operation.wait_watched()
        vm.stop()
        press_ctrl_c()
        operation.log("something to be told about")
        vm.start()
        operation.wait_cancelled()
        operation.end("cancelled")

    vm.play = play
    assert sterna("move", "web", "hv-b").code == 7


def test_ctrl_c_while_a_vm_stops_only_ends_the_waiting(sterna, vm):
    def play(operation: Operation) -> None:
        operation.wait_watched()
        press_ctrl_c()

    vm.play = play
    result = sterna("vm", "stop", "web", "--force", "--timeout", "2m")
    assert result.code == 8
    assert vm.requests[0][2] == {"force": True, "timeout_s": 120.0}
    assert next(iter(vm.operations.values())).cancels == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unknown_outcome_is_waited_for_a_while_and_then_reported(sterna, vm, quick):
    vm.play = lambda op: op.set(
        state="unknown", error=errors.MoveUnknown(vm="web", target="b", operation=op.id).problem()
    )
    result = sterna("move", "web", "hv-b")
    assert result.code == 9
    assert "b was told to take it over and does not answer" in result.err


def test_an_unknown_outcome_that_clears_up_in_time_is_no_matter(sterna, vm):
    def play(operation: Operation) -> None:
        operation.set(state="unknown")
        operation.wait_watched()
        operation.end("succeeded", REPORT)

    vm.play = play
    assert sterna("move", "web", "hv-b").code == 0


def test_op_wait_ends_with_the_outcome_or_8_when_time_is_up(sterna, vm):
    begun = vm.begin(Operation("move", "web", "hv-b"))
    begun.wait(lambda: begun.facts["state"] == "succeeded")
    assert sterna("op", "wait", begun.id).code == 0
    vm.play = lambda operation: operation.wait(lambda: operation.facts["phase"] == "tidy")
    slow = vm.begin(Operation("move", "web", "hv-b"))
    result = sterna("op", "wait", slow.id, "--timeout", "100ms")
    assert result.code == 8
    assert "the move of web goes on by itself: running" in result.err
    told = lines(sterna("op", "wait", slow.id, "--timeout", "50ms", "-o", "json"))
    assert told[-1]["state"] == "running"
    slow.set(state="unknown")
    assert sterna("op", "wait", slow.id, "--timeout", "50ms").code == 9
    slow.set(phase="tidy")


def test_operations_are_listed_shown_and_their_log_printed(sterna, vm):
    vm.play = moving
    sterna("move", "web", "hv-b")
    vm.play = lambda op: op.end("failed", error=errors.Stalled(reason="nothing moved").problem())
    sterna("vm", "stop", "web")
    (first, second) = vm.operations.values()
    rows = sterna("op", "list").out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [second.id, first.id]
    assert sterna("op", "list", "--kind", "move").out.splitlines()[1].split()[0] == first.id
    assert len(json.loads(sterna("op", "list", "-o", "json", "--limit", "1").out)) == 1
    shown = sterna("op", "show", first.id).out
    assert "hv-b reserved 1 GiB (400 ms)" in shown
    assert "carrier" in shown
    assert "nothing moved" in sterna("op", "show", second.id).out
    assert "warning: the guest dirties much" in sterna("op", "log", first.id).out
    assert lines(sterna("op", "log", first.id, "-o", "json")) == first.lines


def test_an_id_may_be_shortened_as_long_as_it_is_one(sterna, vm):
    for ident in ("abc1-x", "abc2-x"):
        operation = Operation("move", "web", "hv-b")
        operation.id = operation.facts["id"] = ident
        vm.begin(operation)
    assert sterna("op", "show", "abc2").code == 0
    assert vm.requests[-1][1] == "/v1/operations/abc2-x"
    several = sterna("op", "show", "abc")
    assert several.code == 2
    assert "'abc' is how 2 operations begin" in several.err


def test_op_cancel_asks_and_with_wait_ends_with_the_outcome(sterna, vm):
    def play(operation: Operation) -> None:
        operation.wait_cancelled()
        operation.wait(lambda: operation.watched > 0 or operation.facts["peer"] == "alone")
        operation.end("cancelled")

    vm.play = play
    first = vm.begin(Operation("move", "web", "alone"))
    assert sterna("op", "cancel", first.id).code == 0
    second = vm.begin(Operation("move", "web", "hv-b"))
    assert sterna("op", "cancel", second.id, "--wait").code == 7
    assert sterna("op", "cancel", second.id).code == 4


def test_a_sample_tells_of_the_network_what_a_person_wants_to_know():
    up = {"state": "up"}
    shown = sample_text({
        "total": 1 << 30, "remaining": 1 << 29, "wire_rate": 25e6, "limit": 25_000_000,
        "is_limited": True, "channels": [up, {"state": "down"}], "ratio": 0.081,
    })  # fmt: skip
    assert shown[-1] == (
        "25 MB/s on the wire (held by limit 25 MB/s, 1 of 2 channels, 8 % of the guest's bytes)"
    )
    assert sample_text({"link": "down", "down_s": 4.2}) == ["link down for 4.2 s"]
    assert sample_text({"limit": 1_000_000, "channels": [up]}) == ["limit 1 MB/s"]
