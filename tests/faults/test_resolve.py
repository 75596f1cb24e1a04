"""A target that dies for good in the handover: the doubt is explained, and a human can end it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from moving import Load, traveller, wait_until
from sterna.errors import NotInDoubt
from sterna.lab import demo
from sterna.lab import hosts as lab_hosts

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

LOAD = Load(memory_mb_s=20, memory_mb=64, disk_blocks_s=50)
CRASHING = Path(__file__).with_name("crashing.py")


def test_a_vm_in_doubt_is_taken_back_from_a_fenced_target_and_runs_once(lab, monkeypatch):
    source, target = lab.hosts
    with traveller(lab, LOAD) as guest:
        target.stop()
        with monkeypatch.context() as patch:
            command = [sys.executable, str(CRASHING), "target-after-owned"]
            patch.setattr(lab_hosts, "_daemon", lambda: command)
            target.start()
            target.wait_ready()
        operation = guest.move(source, target)
        path = f"/v1/operations/{operation['id']}"
        wait_until(lambda: target.process is None, "the target's daemon is dead")
        for pid in demo.qemus(target.netns, guest.name):  # and its power is off
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: source.client.get(path)["state"] == "unknown", "the outcome is unknown")
        assert source.client.get("/v1/vms/tern")["state"] == "unknown"
        doubt = source.client.get(f"{path}/doubt")
        assert (doubt["vm"], doubt["target"], doubt["blocker"]) == ("tern", target.name, "")
        assert (doubt["guest"], doubt["epoch"]) == ("paused", 2)
        assert [way["name"] for way in doubt["ways"]] == ["wait", "fence"]

        source.client.post(f"{path}:resolve", {"fenced": True})
        ended = guest.ended(source, operation)
        assert ended["state"] == "warned"
        assert f"taken back from {target.name} in epoch 3" in ended["result"]["text"]
        wait_until(lambda: source.client.get("/v1/vms/tern")["state"] == "running", "it runs on")
        assert guest.ask(source, "verify")["bad"] == 0
        with pytest.raises(NotInDoubt):
            source.client.get(f"{path}/doubt")

        target.start()  # it believes that it owns the VM, until it is told
        target.wait_ready()
        wait_until(
            lambda: (
                [one["state"] for one in target.client.get("/v1/operations", {"kind": "fenced"})]
                == ["warned"]
            ),
            "the target was told",
        )
        guest.must_run_once_on(source)
        moved = guest.ended(source, guest.move(source, target))
        assert moved["state"] == "succeeded"
        guest.must_run_once_on(target)
        assert target.client.get("/v1/vms/tern")["ownership"]["epoch"] == 4


@pytest.mark.long
def test_a_guest_whose_shared_disk_was_written_to_is_not_continued_but_can_boot(lab, monkeypatch):
    """The source's daemon restarts in doubt as well: what it must know is in the record."""
    source, target = lab.hosts
    with traveller(lab, LOAD) as guest:
        target.stop()
        with monkeypatch.context() as patch:
            command = [sys.executable, str(CRASHING), "target-after-continue"]
            patch.setattr(lab_hosts, "_daemon", lambda: command)
            target.start()
            target.wait_ready()
        operation = guest.move(source, target)
        path = f"/v1/operations/{operation['id']}"
        wait_until(lambda: target.process is None, "the target's daemon is dead")
        for pid in demo.qemus(target.netns, guest.name):  # it runs the guest until its power goes
            os.kill(pid, signal.SIGKILL)
        os.utime(next((lab.folder / "shared").glob("tern*.raw")))  # as that guest would have done
        source.kill()
        source.start()
        source.wait_ready()
        wait_until(lambda: source.client.get(path)["state"] == "unknown", "still unknown")
        source.client.post(f"{path}:resolve", {"fenced": True})
        ended = guest.ended(source, operation)
        assert ended["state"] == "warned"
        assert "it must boot" in ended["result"]["text"]
        target.start()
        target.wait_ready()
        wait_until(lambda: target.client.get("/v1/vms") == [], "the target was told")
        assert source.client.get("/v1/vms/tern")["state"] == "off"
        source.client.post("/v1/vms/tern:start")
        wait_until(lambda: source.client.get("/v1/vms/tern")["state"] == "running", "it runs")
        with pytest.raises(NotInDoubt):
            source.client.post(f"{path}:resolve", {"fenced": True})
