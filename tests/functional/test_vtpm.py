"""VMs with a TPM: what a guest has sealed goes with it, and only to hosts whose guardian may open its keys."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checking import Administrator, configured, odd, watching
from sterna.lab import vm
from sterna.lab.console import GuestConsole
from sterna.lab.vm import Load
from sterna.model.vm import Ownership, OwnershipState, VMRecord, VMSpec
from sterna.qemu.argv import RunPaths
from sterna.security.guardian import Guardian
from sterna.vms.tpm import TPMs
from tpm2 import TPM, Refused, extended

pytestmark = pytest.mark.functional
SECRET = b"the tern's own secret"
DIGEST = hashlib.sha256(b"measured").digest()
STATE = "tpm2-00.permall"


def tpm_of(host: Any) -> TPM:
    """The TPM of the guest on `host`, through the guest."""
    console = Path(host.client.get("/v1/vms/tern")["console"])

    def ask(command: bytes) -> bytes:
        async def asking() -> str:
            async with GuestConsole(console) as guest:
                await guest.ready()
                return str((await guest.ask(f"tpm {command.hex()}"))["tpm"])

        return bytes.fromhex(asyncio.run(asking()))

    return TPM(ask)


def state_of(host: Any) -> list[Path]:
    """Files of TPMs on a host."""
    return sorted((host.folder / "state" / "tpm").rglob(STATE))


@pytest.fixture
def pair(lab: Any) -> Iterator[Any]:
    """A VM with a TPM that runs on the first of them; nobody else may open its keys."""
    here, there = lab.hosts
    spec = vm.spec(lab.guest(), "tern", load=Load()) | {"tpm": True}
    here.client.post("/v1/vms", spec)
    here.client.post("/v1/vms/tern:start")
    yield here, there
    for host in lab.hosts:
        for one in host.client.get("/v1/guardians")[1:]:
            host.client.delete(f"/v1/guardians/{one['name']}")


def introduce(here: Any, there: Any) -> None:
    """The two commands that a refused move prints."""
    key = Administrator(there).run("sterna guardian export")
    file = here.folder / "guardian"
    file.write_text(key)
    admin = Administrator(here)
    admin.run(f"sterna guardian import {there.name} {file}")
    (finding,) = admin.finds("tern", there).values()
    admin.run(finding["command"])


def test_what_is_sealed_moves_while_it_runs_and_opens_there(pair):
    here, there = pair
    admin = Administrator(here)
    tpm = tpm_of(here)
    before = tpm.read()
    tpm.extend(DIGEST)
    sealed = tpm.seal(SECRET)
    assert tpm.unseal(sealed) == SECRET
    finding = admin.finds("tern", there)["secret.guardian-missing"]
    assert f"the guardian of {there.name} may not open the keys of tern" in finding["finding"]
    admin.is_refused("tern", there, "secret.guardian-missing")
    introduce(here, there)
    assert "tern" in admin.run("sterna guardian list")
    value = extended(before, DIGEST)  # which the guest itself has never seen
    with contextlib.ExitStack() as stack:
        for host in (here, there):
            off = ("[migration]", '[migration]\nencryption = "off"')
            stack.enter_context(configured(host, off))
        stack.callback(lambda: None)
        with watching(there, os.fsdecode(value)) as wire:
            admin.moves("tern", there, "--carrier direct")
    assert wire.seen > 1 << 20
    assert wire.found == 0, "the TPM's state crossed the network in the clear"
    assert state_of(here) == []
    (left,) = state_of(there)
    assert left.stat().st_mode & 0o077 == 0
    moved = tpm_of(there)
    assert moved.read() == value
    assert moved.unseal(sealed) == SECRET
    moved.extend(DIGEST)
    with pytest.raises(Refused):
        moved.unseal(sealed)  # it was for that state alone
    # Off as well: the TPM's own secrets stay, what was measured begins anew.
    other = Administrator(there)
    other.run("sterna vm stop tern")
    finding = other.finds("tern", here)
    assert finding == {}, "its first host opens its keys still"
    other.moves("tern", here)
    assert (state_of(there), len(state_of(here))) == ([], 1)
    admin.run("sterna vm start tern")
    again = tpm_of(here)
    again.extend(DIGEST)
    assert again.unseal(sealed) == SECRET
    admin.run("sterna vm stop tern")
    admin.run("sterna vm delete tern --yes")
    assert state_of(here) == []


def test_wrong_and_revoked_guardians_get_nothing_and_a_move_that_is_undone_leaves_the_tpm(
    pair, lab
):
    here, there = pair
    admin, other = Administrator(here), Administrator(there)
    wrong = here.folder / "wrong"
    wrong.write_text("QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=\n")
    admin.run(f"sterna guardian import {there.name} {wrong}")
    admin.run(f"sterna guardian authorize tern {there.name}")
    admin.is_refused("tern", there, "secret.guardian-missing")  # that was another's key
    taken = here.folder / "right"
    taken.write_text(other.run("sterna guardian export"))
    refused = admin.ask(f"sterna guardian import {there.name} {taken}")
    assert (refused.returncode, "knows another guardian called" in refused.stderr) == (4, True)
    admin.run(f"sterna guardian revoke tern {there.name}")
    admin.run(f"sterna guardian forget {there.name}")
    introduce(here, there)
    admin.run(f"sterna guardian revoke tern {there.name}")
    admin.is_refused("tern", there, "secret.guardian-missing")
    own = admin.ask(f"sterna guardian revoke tern {here.name}")
    assert (own.returncode, "could not start here" in own.stderr) == (4, True)
    admin.run(f"sterna guardian authorize tern {there.name}")
    tpm = tpm_of(here)
    sealed = tpm.seal(SECRET)
    began = here.client.post("/v1/vms/tern/moves", {"target": there.name, "bandwidth": 1 << 20})
    here.client.post(f"/v1/operations/{began['id']}:cancel")
    ended = here.client.get(f"/v1/operations/{began['id']}", {"wait": 30}, wait_s=60)
    assert ended["state"] == "cancelled"
    assert state_of(there) == []
    assert tpm_of(here).unseal(sealed) == SECRET
    here.kill()  # the daemon: QEMU and its TPM go on
    here.start()
    here.wait_ready()
    assert tpm_of(here).unseal(sealed) == SECRET
    admin.run("sterna vm stop tern")


@pytest.mark.long  # make checks
def test_a_move_that_is_forced_ends_where_the_tpm_cannot_be_had(pair):
    here, there = pair
    blind = ["secret.guardian-missing", "secret.no-tpm"]
    hidden = 'mount --bind /dev/null "$(command -v swtpm)" && exec "$@"'
    without = ("unshare", "-m", "sh", "-c", hidden, "sh")
    for prefix, found, words in (
        (without, set(blind), "has no swtpm"),
        ((), {"secret.guardian-missing"}, "may not open the keys of tern"),
    ):
        with odd(here, blind=blind), odd(there, *prefix, blind=blind):
            admin = Administrator(here)
            assert set(admin.finds("tern", there)) == found
            tried = admin.ask(f"sterna move tern {there.name}")
            assert tried.returncode != 0
            assert words in tried.stderr
        assert there.client.get("/v1/vms") == []
    assert len(tpm_of(here).read()) == len(DIGEST)  # it runs, and its TPM answers
    Administrator(here).run("sterna vm stop tern")


def test_a_tpm_that_dies_is_told_of_and_is_back_with_the_next_start(pair):
    here, there = pair
    admin = Administrator(here)
    introduce(here, there)
    sealed = tpm_of(here).seal(SECRET)
    vm_id = here.client.get("/v1/vms/tern")["id"]
    os.kill(int((here.folder / "run" / "vms" / vm_id / "tpm.pid").read_text()), signal.SIGKILL)
    (finding,) = admin.finds("tern", there).values()
    assert finding["id"] == "vm.tpm-gone"
    with odd(here, blind=["vm.tpm-gone"]):
        assert admin.ask(f"sterna move tern {there.name}").returncode != 0
    assert here.client.get("/v1/vms/tern")["state"] == "running"
    assert state_of(there) == []
    admin.run(finding["command"])
    admin.run("sterna vm start tern")
    assert admin.finds("tern", there) == {}
    assert tpm_of(here).unseal(sealed) == SECRET
    admin.run("sterna vm stop tern")


async def start_twice(folder: Path) -> list[bool]:
    """What becomes of a swtpm without a QEMU, when its VM is started again, and when that is deleted."""
    tpms = TPMs("hv-a", folder / "tpm", Guardian.ensure(folder / "identity"))
    spec = VMSpec(name="tern", id="5d2b8f5e-6a51-4f0c-8d5e-1f2a3b4c5d6e", tpm=True)
    owned = Ownership(state=OwnershipState.OWNED, epoch=1)
    record = VMRecord(spec=spec, ownership=owned, protector=tpms.protector(spec))
    started = []
    for name in ("first", "second"):
        paths = RunPaths(folder / name)
        paths.directory.mkdir()
        started.append(await tpms.start(record, paths))
    found = [one.is_alive for one in started]
    await asyncio.to_thread(tpms.remove, spec.id)
    return [*found, started[1].is_alive, tpms.folder(spec.id).exists()]


def test_a_tpm_whose_daemon_died_before_its_qemu_came_is_in_nobodys_way(tmp_path):
    assert asyncio.run(start_twice(tmp_path)) == [False, True, False, False]


def test_a_copy_elsewhere_opens_only_with_its_guardian(pair, tmp_path):
    here, there = pair
    admin, other = Administrator(here), Administrator(there)
    sealed = tpm_of(here).seal(SECRET)
    admin.run("sterna vm stop tern")
    folder = tmp_path / "export"
    admin.run(f"sterna vm export tern {folder}")
    assert SECRET not in b"".join(one.read_bytes() for one in folder.rglob("*") if one.is_file())
    refused = other.ask(f"sterna vm import {folder}")
    assert refused.returncode == 3
    assert "may not open the keys of tern" in refused.stderr
    assert (there.client.get("/v1/vms"), state_of(there)) == ([], [])
    admin.run("sterna vm delete tern --yes")
    admin.run(f"sterna vm import {folder}")
    admin.run("sterna vm start tern")
    assert tpm_of(here).unseal(sealed) == SECRET
    admin.run("sterna vm stop tern")
