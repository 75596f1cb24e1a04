"""Every error is a sentence and a fix on stderr, an exit code, and a last line with `-o json`."""

import json
import os
import subprocess
import sys

import pytest

from sterna import errors
from sterna.cli.failure import tell

NOBODY = 65534


def two_lines(result, code, sentence, fix):
    assert result.code == code, result
    first, second = result.err.splitlines()
    assert first.startswith("sterna: ")
    assert sentence in first
    assert second.startswith("fix: ")
    assert fix in second


def test_a_daemon_that_is_away_is_said_with_how_to_start_it(sterna):
    two_lines(sterna("vm", "list"), 6, "no sternad answers at unix://", "systemctl start sternad")


def test_an_error_is_the_last_json_line_too(sterna):
    result = sterna("vm", "list", "-o", "json")
    last = json.loads(result.out)
    assert (last["type"], last["state"]) == ("result", "failed")
    assert last["error"]["code"] == "daemon.unreachable"
    assert last["error"]["exit_code"] == 6 == result.code
    assert len(result.err.splitlines()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_socket_that_is_not_for_you_is_said_so(sternad, tmp_path):
    tmp_path.chmod(0o700)
    program = (
        "import os, sys; sys.path[:] = eval(sys.argv[1])\n"
        "from sterna.cli.main import run\n"
        "run(['--host', 'unix:///none', 'vm', 'list'])\n"  # imports what nobody may not read
        f"os.setuid({NOBODY})\n"
        "sys.exit(run(['--host', sys.argv[2], 'vm', 'list']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, repr(sys.path), sternad.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"sterna: using {sternad.path} is not allowed: the socket of sternad is for root and for one group",
        "fix: Run the command with sudo; or let an administrator add you to the group sterna",
    ]


def test_an_unknown_host_is_said_with_the_known_ones(sterna, tmp_path):
    (tmp_path / "sternad.toml").write_text(f'state_dir = "{tmp_path}"\n')
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "hv-b.json").write_text(
        '{"name": "hv-b", "url": "https://127.0.0.1:1", "certificate": "-"}'
    )
    two_lines(sterna("--host", "hv-x", "vm", "list"), 4, "a host called hv-x", "known hosts: hv-b")


def test_a_host_url_that_is_none_is_named(sterna):
    two_lines(
        sterna("--host", "http://x", "vm", "list"), 2, "'http://x' is not a host", "https://HOST"
    )


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("gone.json", None, "cannot be read: No such file"),
        ("bad.json", "{", "is not valid JSON"),
        ("bad.toml", "x = = 1", "is not valid TOML"),
        ("list.json", "[]", "must hold one object"),
        ("empty", "", "is not valid JSON"),
        ("binary.json", b"\xff\xfe", "is not a text file"),
        ("date.toml", "name = 2020-01-01", "no dates"),
        ("list.json", '{"name": "a", "disks": 3}', "disks: must be a list"),
        ("new.json", '{"name": "a", "vcpu": 2}', "new.json: unknown field 'vcpu'"),
    ],
)
def test_a_spec_that_cannot_be_used_is_named_with_the_reason(  # noqa: PLR0917 - a table
    sterna, sternad, tmp_path, file, text, said
):
    if text is not None:
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = sterna("vm", "create", "-f", str(tmp_path / file), "--disk", "size=1GiB")
    two_lines(result, 2, said, "sterna vm create --help")
    assert sternad.vms == {}


def test_conflicts_and_things_that_are_not_there_exit_4(sterna, sternad):
    sternad.add_vm("web")
    two_lines(sterna("vm", "create", "web"), 4, "already has a VM called web", "another name")
    two_lines(sterna("vm", "show", "db"), 4, "hv-a has no VM called db", "sterna vm list")
    two_lines(sterna("op", "show", "1"), 4, "no operation 1", "sterna op list")
    two_lines(sterna("host", "show", "x"), 4, "a host called x", "known hosts: hv-b")


@pytest.mark.parametrize(
    ("arguments", "sentence", "fix"),
    [
        (["vm", "lsit"], "sterna vm has no command 'lsit'; did you mean list?", "sterna vm --help"),
        (["nothing"], "sterna has no command 'nothing'", "sterna --help"),
        (["vm"], "sterna vm needs a command", "sterna vm --help"),
        (["vm", "list", "--bad"], "no such option", "sterna vm list --help"),
        (["vm", "show"], "missing argument 'VM'", "sterna vm show --help"),
        (["vm", "create"], "a VM needs a name", "sterna vm create --help"),
        (["vm", "create", "a", "--memory", "-1GiB"], "more than zero", "positive number"),
        (["vm", "create", "a", "--memory", "12parsec"], "parsec is not known", "with a unit"),
        (["vm", "create", "a", "--disk", "sise=1"], "'sise' is not one of", "--help"),
        (["vm", "create", "a", "--disk", "size="], "size has no value", "--help"),
        (["vm", "create", "a", "--disk", "pool=a,pool=b"], "given twice", "--help"),
        (["vm", "create", "a", "--nic", "switch=a,vlan=b"], "VLAN 'b' is not a number", "--help"),
        (["move", "a", "b", "--deadline", "soon"], "'soon' is not a duration", "10m"),
        (["move", "a", "b", "--bandwidth", "fast"], "'fast' is not a rate", "1Gbit"),
        (["vm", "list", "-o", "xml"], "'xml'", "--help"),
        (["completion", "tcsh"], "'tcsh'", "--help"),
    ],
)
def test_a_mistake_in_the_command_line_exits_2_and_says_what(sterna, arguments, sentence, fix):
    two_lines(sterna(*arguments), 2, sentence, fix)
    result = json.loads(sterna(*arguments, "-o", "json").out) if arguments[-1] != "xml" else None
    assert result is None or result["error"]["exit_code"] == 2


def test_an_answer_without_json_and_a_daemon_that_dies_in_an_answer(sterna, sternad):
    sternad.answer = lambda handler: handler.send_raw(500, b"oops") or True
    two_lines(sterna("vm", "list"), 6, "HTTP 500 without saying why", "systemctl start")
    sternad.answer = lambda handler: handler.connection.shutdown(2) or True
    two_lines(sterna("vm", "pause", "web"), 9, "may or may not have been done", "sterna vm list")


def test_the_findings_of_a_refused_move_are_told_one_by_one(capsys):
    findings = [
        {"id": "network.switch-missing", "finding": "hv-b has no switch lan", "fix": "make it"},
        {"id": "memory.short", "finding": "2 GiB are missing", "fix": ""},
    ]
    tell(errors.MoveRefused(
        vm="web", target="hv-b", summary="2 blockers", fix="Mend both", findings=findings
    ).problem())  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        "sterna: web cannot move to hv-b: 2 blockers",
        "  network.switch-missing: hv-b has no switch lan (make it)",
        "  memory.short: 2 GiB are missing",
        "fix: Mend both",
    ]


def test_a_bug_is_called_a_bug(sterna, sternad):
    sternad.answer = lambda handler: handler.send(200, [{"nonsense": 1}]) or True
    result = sterna("vm", "list")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "a bug in sterna: KeyError('name')" in result.err


def test_a_reader_that_goes_away_is_no_error(sternad):
    for number in range(3000):
        sternad.add_vm(f"vm-{number}")
    command = (
        f"{sys.executable} -m sterna.cli.main --host {sternad.url} vm list -o json | head -n 1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[\n", "")
