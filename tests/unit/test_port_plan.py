"""What an import comes to, and what stands in its way: without files or hosts."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sterna.errors import BadSpec, VolumeExists
from sterna.model.cpu import CPUChoice
from sterna.model.disk import Checkpoint, Image, StateFile, Volume
from sterna.model.edge import dump, parse
from sterna.model.host import Pool, PoolFacts
from sterna.model.port import ExportedFile, ExportWishes, ImportWishes, Manifest
from sterna.model.vm import NIC, Disk, Firmware, VMSpec
from sterna.port import export
from sterna.port.arrive import Arriving
from sterna.port.checks import Facts, Question, check, consistent
from sterna.port.plan import plan, record_of
from sterna.qemu.image import ImageInfo

ID = "9d2b8f5e-6a51-4f0c-8d5e-1f2a3b4c5d6e"
MEMORY = StateFile(pool="old", volume="web-0a-one.mem", size=5, sha256="ab", accel="tcg")
ONE = Checkpoint(
    id="0a", name="one", created="", images={"vda": Image(volume="web-vda.qcow2")}, memory=MEMORY
)
TWO = Checkpoint(
    id="0b", name="two", created="", parent="0a", images={"vda": Image(volume="web-vda.0a.qcow2")}
)
GOLDEN = Image(volume="web-golden.qcow2")
MANIFEST = Manifest(
    exported="2026-01-01T00:00:00Z",
    host="a",
    spec=VMSpec(
        name="web",
        id=ID,
        machine="pc-q35-7.2",
        disks=(Disk(name="vda", pool="old", volume="web-vda.0b.qcow2", base=(GOLDEN,)),),
        nics=(NIC(name="net0", switch="lan", mac="52:54:00:00:00:01"),),
    ),
    checkpoints=(ONE, TWO),
    at="0b",
    files=tuple(
        ExportedFile(name=name, size=9, allocated=9, sha256="cd")
        for name in (
            "web-vda.0b.qcow2", "web-vda.qcow2", "web-vda.0a.qcow2", "web-0a-one.mem", GOLDEN.volume,
        )
    ),
)  # fmt: skip
WISHES = ImportWishes(folder="/f")
HEADERS = {
    "web-vda.0b.qcow2": "web-vda.0a.qcow2",
    "web-vda.0a.qcow2": "web-vda.qcow2",
    "web-vda.qcow2": GOLDEN.volume,
    GOLDEN.volume: "",
}
FACTS = Facts(
    host="b",
    sizes={one.name: one.size for one in MANIFEST.files},
    headers={
        name: ImageInfo(format="qcow2", size=9, allocated=9, backing=below)
        for name, below in HEADERS.items()
    },
    pools={"old": PoolFacts(pool=Pool(name="old", path="/p"), total=99, free=99)},
    machines=("pc-q35-7.2",),
    accel="tcg",
)


def findings(
    manifest: Manifest = MANIFEST, wishes: ImportWishes = WISHES, **facts: object
) -> list[str]:
    planned = plan(manifest, wishes, folder_pool="")
    question = Question(
        manifest=manifest, wishes=wishes, plan=planned, facts=replace(FACTS, **facts)
    )
    return [one.id for one in check(question)]


def test_the_same_vm_comes_as_it_was():
    planned = plan(MANIFEST, WISHES, folder_pool="")
    assert planned.record == record_of(MANIFEST)
    assert [one.name for one in planned.arrivals if one.is_template] == [GOLDEN.volume]
    assert all(one.place == Volume(pool="old", volume=one.name) for one in planned.arrivals)
    assert not any(one.below for one in planned.arrivals)
    assert findings() == []


def test_another_name_renames_the_files_and_what_they_rest_on_but_never_a_template():
    wishes = replace(WISHES, name="gull", pool="new", new_identity=True)
    planned = plan(MANIFEST, wishes, folder_pool="")
    spec = planned.record.spec
    assert spec.id != ID
    assert spec.nics[0].mac != MANIFEST.spec.nics[0].mac
    assert (spec.disks[0].pool, spec.disks[0].base) == ("new", (GOLDEN,))
    assert planned.dropped_memory
    below = {one.place.volume: one.below.volume for one in planned.arrivals if one.below}
    assert below == {
        "gull-vda.0b.qcow2": "gull-vda.0a.qcow2",
        "gull-vda.0a.qcow2": "gull-vda.qcow2",
    }
    assert {one.name for one in planned.arrivals} == set(HEADERS)


def test_a_folder_that_is_registered_is_one_pool_and_its_files_keep_their_names():
    wishes = replace(WISHES, register=True, name="gull", pool="here")
    planned = plan(MANIFEST, wishes, folder_pool="")
    assert planned.new_pool == "here"
    assert all(one.place == Volume(pool="here", volume=one.name) for one in planned.arrivals)
    assert plan(MANIFEST, wishes, folder_pool="known").new_pool == ""
    assert findings(wishes=replace(wishes, pool="old")) == ["import.pool-exists"]


def test_each_thing_that_is_lacking_is_named():
    info = ImageInfo(format="qcow2", size=9, allocated=9)
    top = "web-vda.0b.qcow2"
    assert findings(headers=FACTS.headers | {top: replace(info, backing="/etc/shadow")}) == [
        "import.chain"
    ]
    assert findings(headers=FACTS.headers | {top: replace(info, data_file="/dev/sda")}) == [
        "import.chain"
    ]
    assert findings(headers=FACTS.headers | {top: None}) == ["import.chain"]
    assert findings(spoilt=frozenset({top})) == ["import.file-differs"]
    assert findings(pools={}) == ["import.pool-missing"]
    full = PoolFacts(pool=Pool(name="old", path="/p"), total=99, free=44)
    assert findings(pools={"old": full}) == ["import.no-room"]
    golden = Volume(pool="old", volume=GOLDEN.volume)
    assert findings(taken=frozenset({golden})) == ["import.file-exists"]
    there = {"taken": frozenset({golden}), "templates": frozenset({golden})}
    assert findings(**there, pools={"old": replace(full, free=36)}) == []
    assert findings(id_taken="web", macs={"52:54:00:00:00:01": "web"}) == ["import.same-vm"]
    assert findings(macs={"52:54:00:00:00:01": "db"}) == ["import.mac-taken"]
    assert findings(went_to="c") == ["import.elsewhere"]
    assert findings(accel="kvm") == ["import.accel"]  # of a checkpoint: a warning
    saved = replace(MANIFEST, saved=MEMORY)
    assert findings(saved, accel="kvm")[0] == "import.accel"
    assert findings(saved, replace(WISHES, memory=False), accel="kvm") == []


def test_a_manifest_that_contradicts_itself_is_no_export():
    assert consistent(MANIFEST) == ""
    assert "does not list" in consistent(replace(MANIFEST, files=MANIFEST.files[1:]))
    assert "twice" in consistent(replace(MANIFEST, files=(*MANIFEST.files, MANIFEST.files[0])))
    endless = replace(ONE, parent="0b")
    assert "lead back" in consistent(replace(MANIFEST, checkpoints=(endless, TWO)))
    body = dump(MANIFEST)
    assert parse(Manifest, body, "it") == MANIFEST
    body["files"][0]["name"] = "../../etc/shadow"
    with pytest.raises(BadSpec):
        parse(Manifest, body, "it")


def test_a_vm_as_it_was_at_a_checkpoint_has_those_before_it_and_its_memory_as_saved_state():
    record = record_of(MANIFEST)
    then = export.as_it_was(record, ONE)
    assert then.spec.disks[0].volume == "web-vda.qcow2"
    assert (then.checkpoints, then.at, then.saved) == ((), "", MEMORY)
    later = export.as_it_was(record, TWO)
    assert (later.checkpoints, later.at, later.saved) == ((ONE,), "0a", None)
    assert export.without_memory(later).checkpoints[0].memory is None


def test_a_manifest_that_would_mislead_is_none():
    twin = replace(TWO, id=ONE.id, parent="")
    assert "same name or id" in consistent(replace(MANIFEST, checkpoints=(ONE, twin), at=ONE.id))
    strange = replace(TWO, images={"vdz": Image(volume="web-vda.0a.qcow2")})
    assert "vdz" in consistent(replace(MANIFEST, checkpoints=(ONE, strange)))
    assert "variables" in consistent(replace(MANIFEST, nvram="not base64"))
    spec = dump(MANIFEST.spec)
    for identity in ("../../../etc/x", "a/b", ".", "a.b", "x\n"):
        with pytest.raises(BadSpec):
            parse(VMSpec, spec | {"id": identity}, "spec")
    for name in ("a\0b", "a\nb", "../a", ".a"):
        with pytest.raises(BadSpec):
            parse(ExportedFile, {"name": name, "size": 1, "allocated": 1, "sha256": ""}, "file")


def test_a_slash_at_the_end_of_a_folder_means_nothing():
    assert ExportWishes(folder="/backup//web/").folder == "/backup/web"
    assert ImportWishes(folder="/backup/web/.").folder == "/backup/web"
    for folder in ("backup", "", "/a\0b"):
        with pytest.raises(ValueError, match="absolute"):
            ExportWishes(folder=folder)


def test_what_is_translated_must_have_been_there():
    wishes = replace(WISHES, pools={"odl": "new"}, switches={"land": "office"})
    assert findings(wishes=wishes) == ["import.pool-unknown", "import.switch-unknown"]
    wishes = replace(WISHES, pools={"old": "old"}, switches={"lan": "office"})
    assert findings(wishes=wishes) == []


def test_a_uefi_vm_without_variables_is_warned_of():
    manifest = replace(MANIFEST, spec=replace(MANIFEST.spec, firmware=Firmware.UEFI))
    assert findings(manifest) == ["import.no-variables"]
    assert findings(replace(manifest, nvram="AAAA")) == []


def test_a_file_that_came_meanwhile_is_named_as_anothers(tmp_path):
    disks = tmp_path / "disks"
    disks.mkdir()
    planned = plan(MANIFEST, WISHES, folder_pool="")
    for one in planned.arrivals:
        (disks / one.name).write_bytes(b"")
    first = planned.arrivals[0]
    (tmp_path / first.place.volume).write_text("mine")

    class Shown:
        add = staticmethod(lambda _length: None)

        @contextlib.asynccontextmanager
        async def shown(self, _total):
            yield

    arriving = Arriving.__new__(Arriving)
    arriving._manifest, arriving._plan, arriving._folder = MANIFEST, planned, tmp_path
    arriving._progress, arriving.others = Shown(), set()
    arriving._pools = SimpleNamespace(
        volume_path=lambda _pool, volume: tmp_path / volume, require=lambda _pool: None
    )
    with pytest.raises(VolumeExists):
        arriving.require_free([first.place])
    with pytest.raises(VolumeExists):
        asyncio.run(arriving.copy(()))
    assert arriving.others == {first.place}
    assert (tmp_path / first.place.volume).read_text() == "mine"


def test_a_new_name_does_not_make_two_files_one():
    twin = Disk(name="vdb", pool="old", volume="gull-vda.0b.qcow2")
    spec = replace(MANIFEST.spec, disks=(*MANIFEST.spec.disks, twin))
    listed = (*MANIFEST.files, ExportedFile(name=twin.volume, size=9, allocated=9, sha256=""))
    manifest = replace(MANIFEST, spec=spec, files=listed)
    planned = plan(manifest, replace(WISHES, name="gull"), folder_pool="")
    vda, vdb = planned.record.spec.disks
    assert (vda.volume, vdb.volume) == ("web-vda.0b.qcow2", "gull-vda.0b.qcow2")
    assert len({one.place for one in planned.arrivals}) == len(listed)


def test_a_processor_that_waits_for_the_next_start_comes_with_the_vm():
    wished = CPUChoice(model="x86-64-v2")
    exported = parse(Manifest, dump(replace(MANIFEST, cpu_next=wished)), "sterna-vm.json")
    assert plan(exported, WISHES, folder_pool="").record.cpu_next == wished
