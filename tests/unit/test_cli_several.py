"""The command line of several VMs at once: what is asked, what is shown, which exit code."""

from __future__ import annotations

import json

import pytest
from click import UsageError

from sterna.cli import main as cli
from sterna.cli import several
from sterna.cli.command import Settings
from sterna.cli.progress import new_steps, sample_text

OPERATION = {"id": "op-1", "kind": "moves", "vm": "", "state": "running"}


def planned(vm, outcome="well", target="b", reason=""):
    return {
        "vm": vm, "vm_id": vm, "state": "running", "memory": 1 << 30, "priority": 50,
        "target": target, "outcome": outcome, "findings": [], "reason": reason, "fix": "",
    }  # fmt: skip


class Sternad:
    """Answers a check with the plan that it was given, and everything else with an operation."""

    def __init__(self, *vms):
        self.plan = {"source": "a", "made": "now", "vms": list(vms), "notes": ["mind this"]}
        self.posted = []

    def post(self, path, body=None, wait_s=0.0):
        self.posted.append((path, body))
        return self.plan if path.endswith(":check") else OPERATION


def run(monkeypatch, sternad, *line):
    monkeypatch.setattr(Settings, "client", lambda *_: sternad)
    return cli.sterna.main(
        args=list(line), prog_name="sterna", standalone_mode=False, obj=Settings()
    )


def test_several_vms_are_planned_then_moved(monkeypatch, capsys):
    sternad = Sternad(planned("web"), planned("db", "blocked", "", "it has no switch"))
    assert (
        run(monkeypatch, sternad, "move", "web", "db", "b", "--bandwidth", "1MB", "--detach") == 0
    )
    body = {"vms": ["web", "db"], "wishes": {"target": "b", "bandwidth": 1_000_000}}
    assert sternad.posted == [("/v1/moves:check", body), ("/v1/moves", body)]
    said = capsys.readouterr()
    assert said.out == "op-1\n"  # the plan is no result
    assert "it has no switch" in said.err
    assert "mind this" in said.err


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [(("well", "well"), 0), (("well", "warned"), 10), (("blocked", "warned"), 3), ((), 0)],
)
def test_a_dry_run_asks_for_nothing_but_a_plan(monkeypatch, capsys, outcomes, code):
    sternad = Sternad(*(planned(f"vm{n}", one) for n, one in enumerate(outcomes)))
    assert run(monkeypatch, sternad, "host", "drain", "--dry-run", "--to", "b") == code
    assert sternad.posted == [
        ("/v1/host/drain:check", {"to": ["b"], "keep_off": False, "wishes": {"target": "*"}})
    ]
    sternad.posted.clear()
    assert run(monkeypatch, sternad, "move", "web", "b", "--dry-run", "-o", "json") == code
    assert [path for path, _ in sternad.posted] == ["/v1/moves:check"]
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["vms"] == sternad.plan["vms"]


def test_a_resume_may_leave_vms_where_they_are(monkeypatch):
    sternad = Sternad()
    run(monkeypatch, sternad, "host", "resume", "--no-fail-back", "--detach")
    assert sternad.posted[-1] == ("/v1/host/resume", {"fail_back": False})


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (("--affinity", "shop,db"), {"affinity": ["shop", "db"]}),
        (("--anti-affinity", "none"), {"anti_affinity": []}),
        (
            ("--allowed-hosts", "a,b", "--priority", "0"),
            {"allowed_hosts": ["a", "b"], "priority": 0},
        ),
    ],
)
def test_rules_become_changes(monkeypatch, line, body):
    asked = []

    class Client:
        def patch(self, path, changes):
            asked.append((path, changes))
            return {"name": "web", "state": "off"}

    run(monkeypatch, Client(), "vm", "set", "web", *line)
    assert asked == [("/v1/vms/web", body)]


def test_a_change_of_nothing_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="Say what shall change"):
        run(monkeypatch, Sternad(), "vm", "set", "web")


def test_parts_are_told_as_they_end_in_whatever_order():
    steps = [{"name": "a", "state": "running"}, {"name": "b", "state": "done"}]
    assert [step["name"] for _, step in new_steps({"steps": steps}, set())] == ["b"]
    steps[0]["state"] = "failed"
    assert [step["name"] for _, step in new_steps({"steps": steps}, {1})] == ["a"]


def test_the_whole_is_told_in_vms_and_what_is_under_way_in_shares():
    sample = {"vms": 8, "vms_ended": 3, "share": 0.4, "under_way": {"web": 0.25}}
    assert sample_text(sample) == ["3 of 8 VMs", "web 25 %"]


def test_what_stayed_is_told_with_its_fix_if_there_are_several(capsys):
    parts = [
        {"vm": "web", "state": "moved", "target": "b"},
        {"vm": "db", "state": "refused", "target": "b", "reason": "no switch", "fix": "make it"},
    ]
    several.tell(parts)
    assert capsys.readouterr().err == ""  # the error has told it
    several.tell([*parts, {"vm": "old", "state": "failed", "reason": "gone", "fix": ""}])
    assert capsys.readouterr().err == ("  db: refused, no switch (make it)\n  old: failed, gone\n")
    assert several.sentences(parts)[0] == "web: moved to b"
