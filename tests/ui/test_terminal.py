"""What a person sees on a real terminal, and what a program gets there instead."""

import json
import re
import socket

import pytest

from standin import Operation
from sterna import errors
from terminal import Terminal

pytestmark = pytest.mark.ui

SAMPLE = {"time_s": 1.0, "phase": "memory", "total": 1 << 30, "remaining": 256 << 20,
          "rate": 118e6, "dirty_rate": 50e6, "rounds": 2, "expected_pause_ms": 84.0}  # fmt: skip
REPORT = {"from": "hv-a", "to": "hv-b", "live": True, "total_s": 6.2, "pause_ms": 84.2}
HIDE_CURSOR, SHOW_CURSOR, COLOUR = b"\x1b[?25l", b"\x1b[?25h", re.compile(rb"\x1b\[[0-9;]*3[0-9]")


class Moving:
    """A move that stays in its memory phase until the test lets it end."""

    def __init__(self, sternad) -> None:
        sternad.play = self

    def __call__(self, operation: Operation) -> None:
        operation.phase("reserve")
        operation.wait_watched()
        operation.step("reserve", "hv-b reserved 1 GiB", 0.4)
        operation.phase("memory")
        operation.sample(**SAMPLE)
        operation.wait(lambda: operation.facts["peer"] == "" or operation.cancels > 0)
        if operation.cancels:
            error = errors.MoveCancelled(vm="web", target="hv-b", phase="memory")
            operation.end("cancelled", error=error.problem())
        else:
            operation.end("succeeded", REPORT)


def let_it_end(sternad) -> None:
    (operation,) = sternad.operations.values()
    operation.set(peer="")


def test_a_move_draws_its_bar_with_the_numbers_that_matter(sternad):
    Moving(sternad)
    with Terminal("move", "web", "hv-b", columns=120, STERNA_HOST=sternad.url) as terminal:
        terminal.expect("75 %")
        terminal.expect("memory")
        terminal.expect(
            "768 MiB of 1 GiB · 118 MB/s · 256 MiB left · dirties 50 MB/s · pause ~84 ms"
        )
        terminal.expect("reserve     hv-b reserved 1 GiB (400 ms)")
        let_it_end(sternad)
        assert terminal.end() == 0
        assert "web moved from hv-a to hv-b in 6.2 s; the pause was 84 ms" in terminal.text
        assert HIDE_CURSOR in terminal.seen
        assert terminal.seen.rindex(SHOW_CURSOR) > terminal.seen.rindex(HIDE_CURSOR)
        assert "━" in terminal.text


def test_a_narrow_terminal_gets_the_most_important_numbers_and_no_broken_line(sternad):
    Moving(sternad)
    with Terminal("move", "web", "hv-b", columns=44, STERNA_HOST=sternad.url) as terminal:
        terminal.expect("768 MiB of 1 GiB · 118 MB/s")
        let_it_end(sternad)
        assert terminal.end() == 0
        assert "256 MiB left" not in terminal.text


def test_ctrl_c_on_the_keyboard_cancels_and_says_so(sternad):
    Moving(sternad)
    with Terminal("move", "web", "hv-b", STERNA_HOST=sternad.url) as terminal:
        terminal.expect("75 %")
        terminal.type(b"\x03")
        assert terminal.end() == 7
        assert "cancelling, and waiting until it is undone" in terminal.text
        assert "sterna: the move of web to hv-b was cancelled in phase memory" in terminal.text
        assert terminal.seen.rindex(SHOW_CURSOR) > terminal.seen.rindex(HIDE_CURSOR)


def test_json_on_a_terminal_is_plain_lines(sternad):
    Moving(sternad)
    with Terminal("move", "web", "hv-b", "-o", "json", STERNA_HOST=sternad.url) as terminal:
        terminal.expect('"expected_pause_ms": 84.0}')
        let_it_end(sternad)
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.seen
        lines = [json.loads(line) for line in terminal.text.splitlines()]
        assert lines[-1]["state"] == "succeeded"


def test_a_terminal_that_cannot_draw_gets_lines(sternad):
    Moving(sternad)
    with Terminal("move", "web", "hv-b", STERNA_HOST=sternad.url, TERM="dumb") as terminal:
        terminal.expect("move of web to hv-b: memory")
        let_it_end(sternad)
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.seen


def test_states_are_coloured_unless_no_color_is_set(sternad):
    with Terminal("vm", "list", STERNA_HOST=sternad.url) as terminal:
        assert terminal.end() == 0
        assert b"\x1b[32mrunning\x1b[0m" in terminal.seen
    with Terminal("vm", "list", STERNA_HOST=sternad.url, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.seen
    Moving(sternad)
    with Terminal("move", "web", "hv-b", STERNA_HOST=sternad.url, NO_COLOR="1") as terminal:
        terminal.expect("75 %")
        let_it_end(sternad)
        assert terminal.end() == 0
        assert not COLOUR.search(terminal.seen)


@pytest.mark.parametrize(
    ("typed", "code", "is_left"), [(b"y\n", 0, False), (b"n\n", 7, True), (b"\x03", 130, True)]
)
def test_deleting_asks_first(sternad, typed, code, is_left):
    with Terminal("vm", "delete", "web", STERNA_HOST=sternad.url) as terminal:
        terminal.expect("Delete web and its disks? [y/N]:")
        assert terminal.insist(typed) == code
    assert ("web" in sternad.vms) is is_left


def test_deleting_a_vm_that_is_not_there_does_not_ask(sternad):
    with Terminal("vm", "delete", "db", STERNA_HOST=sternad.url) as terminal:
        assert terminal.end() == 4
        assert "Delete" not in terminal.text


@pytest.fixture
def serial(sternad, tmp_path):
    """The listening end of the VM's console."""
    path = tmp_path / "serial"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        sternad.vms["web"] |= {"console": str(path), "process": {"pid": 1, "accel": "tcg"}}
        yield listener


def test_the_console_is_raw_both_ways_and_ctrl_bracket_leaves(sternad, serial):
    with Terminal("vm", "console", "web", STERNA_HOST=sternad.url) as terminal:
        guest, _ = serial.accept()
        with guest:
            terminal.expect("connected to the console of web; Ctrl-] leaves")
            guest.sendall(b"login: ")
            terminal.expect("login: ")
            assert not terminal.has_echo()
            terminal.type(b"root\r\x03")
            got = b""
            while len(got) < 6:
                got += guest.recv(16)
            assert got == b"root\r\x03"
            terminal.type(b"x\x1d")
            assert guest.recv(16) == b"x"
            assert terminal.end() == 0
            assert "left the console of web; it goes on" in terminal.text


def test_a_console_that_ends_says_where_its_vm_is(sternad, serial):
    with Terminal("vm", "console", "web", STERNA_HOST=sternad.url) as terminal:
        guest, _ = serial.accept()
        terminal.expect("Ctrl-] leaves")
        del sternad.vms["web"]
        guest.close()
        assert terminal.end() == 0
        assert "the console ended: web is no longer on this host" in terminal.text


def test_a_vm_that_is_off_has_no_console(sternad):
    sternad.vms["web"]["state"] = "off"
    with Terminal("vm", "console", "web", STERNA_HOST=sternad.url) as terminal:
        assert terminal.end() == 4
        assert "cannot open the console of web: it is off" in terminal.text
