"""Each command does what it says, in words for people and in JSON for programs."""

import io
import json

import pytest


def test_vms_are_listed_with_sizes_that_people_read(sterna, sternad):
    sternad.add_vm("web", disks=[{"name": "vda", "pool": "default"}])
    result = sterna("vm", "list")
    assert result.code == 0
    header, row = result.out.splitlines()
    assert header.split() == [
        "NAME",
        "STATE",
        "HOST",
        "VCPUS",
        "MEMORY",
        "DISKS",
        "NICS",
        "OPERATION",
    ]
    assert row.split() == ["web", "running", "hv-a", "2", "2", "GiB", "1", "0", "-"]


def test_the_json_of_a_list_is_what_the_daemon_said(sterna, sternad):
    view = sternad.add_vm("web")
    assert json.loads(sterna("vm", "list", "-o", "json").out) == [view]
    assert json.loads(sterna("-o", "json", "vm", "list").out) == [view]


def test_an_option_of_the_command_wins_over_the_same_before_it(sterna, sternad):
    sternad.add_vm("web")
    assert sterna("-o", "json", "vm", "list", "-o", "table").out.startswith("NAME")


def test_an_empty_list_says_what_to_do_and_stays_empty_for_programs(sterna, sternad):
    result = sterna("vm", "list")
    assert (result.out, result.err) == ("", "no VMs here; make one with: sterna vm create --help\n")
    assert json.loads(sterna("vm", "list", "-o", "json").out) == []


def test_options_become_the_spec_that_is_sent(sterna, sternad):
    result = sterna(
        "vm", "create", "web", "--vcpus", "4", "--memory", "1GiB", "--disk", "size=10GiB",
        "--disk", "pool=san,volume=b.raw,format=raw,read_only=yes", "--nic", "switch=lan,vlan=7",
        "--nic", "switch=dmz,mac=52:54:00:00:00:01", "--kernel", "/k", "--cmdline", "a=b,c",
        "--no-graphics", "--tag", "x", "--tag", "y", "--firmware", "uefi",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.out == "created web, it is off\n"
    assert sternad.requests[-1] == ("POST", "/v1/vms", {
        "name": "web", "vcpus": 4, "memory": 1 << 30, "firmware": "uefi", "graphics": False,
        "boot": {"kernel": "/k", "cmdline": "a=b,c"}, "tags": ["x", "y"],
        "disks": [
            {"name": "vda", "pool": "default", "size": 10 << 30},
            {"name": "vdb", "pool": "san", "volume": "b.raw", "format": "raw", "read_only": True},
        ],
        "nics": [
            {"name": "net0", "switch": "lan", "vlan": 7},
            {"name": "net1", "switch": "dmz", "mac": "52:54:00:00:00:01"},
        ],
    })  # fmt: skip


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("web.json", '{"name": "web", "memory": "2GiB", "disks": [{"name": "vda", "pool": "p"}]}'),
        ("web.toml", 'name = "web"\nmemory = "2GiB"\n[[disks]]\nname = "vda"\npool = "p"\n'),
    ],
)
def test_a_spec_file_is_sent_and_options_win_over_it(sterna, sternad, tmp_path, file, text):
    (tmp_path / file).write_text(text)
    result = sterna("vm", "create", "other", "-f", str(tmp_path / file), "--disk", "size=1GiB")
    assert result.code == 0, result.err
    sent = sternad.requests[-1][2]
    assert sent["name"] == "other"
    assert sent["memory"] == "2GiB"
    assert sent["disks"][1] == {"name": "vdb", "pool": "default", "size": 1 << 30}


@pytest.mark.parametrize("text", ['{"name": "web"}', 'name = "web"'])
def test_a_spec_comes_from_standard_input_too(sterna, sternad, monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert sterna("vm", "create", "-f", "-").code == 0
    assert sternad.requests[-1][2] == {"name": "web"}


def test_relative_paths_are_sent_as_this_machine_sees_them(sterna, sternad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sterna("vm", "create", "web", "--kernel", "vmlinuz", "--disk", "image=a.qcow2")
    sent = sternad.requests[-1][2]
    assert sent["boot"]["kernel"] == str(tmp_path / "vmlinuz")
    assert sent["disks"][0]["image"] == str(tmp_path / "a.qcow2")
    sterna("pool", "create", "p", "--path", "disks")
    assert sternad.requests[-1][2]["path"] == str(tmp_path / "disks")


def test_create_with_start_starts_it(sterna, sternad):
    result = sterna("vm", "create", "web", "--start")
    assert (result.out, result.err) == ("started web, it is running\n", "created web\n")


@pytest.mark.parametrize(
    ("action", "done"),
    [("start", "started web, it is running"), ("pause", "paused web, it is paused"),
     ("resume", "resumed web, it is running")],
)  # fmt: skip
def test_a_vm_is_started_paused_and_resumed(sterna, sternad, action, done):
    sternad.add_vm("web")
    assert sterna("vm", action, "web").out == f"{done}\n"
    assert json.loads(sterna("vm", action, "web", "-o", "json").out) == sternad.vms["web"]


def test_a_vm_is_shown_with_its_disks_and_cards(sterna, sternad):
    sternad.add_vm(
        "web",
        disks=[
            {"name": "vda", "pool": "p", "volume": "w.qcow2", "format": "qcow2", "size": 5 << 30}
        ],
        nics=[{"name": "net0", "switch": "lan", "mac": "52:54:00:00:00:01", "vlan": 3}],
    )
    out = sterna("vm", "show", "web").out
    assert "vda: w.qcow2 in pool p, qcow2, 5 GiB" in out
    assert "net0: switch lan VLAN 3, 52:54:00:00:00:01" in out


def test_deleting_needs_yes_where_nobody_can_be_asked(sterna, sternad):
    sternad.add_vm("web", "off")
    result = sterna("vm", "delete", "web")
    assert result.code == 2
    assert result.err.splitlines() == [
        "sterna: deleting web asks first, and this is not a terminal",
        "fix: Give --yes to do it without being asked",
    ]
    assert "web" in sternad.vms
    assert sterna("vm", "delete", "web", "--yes", "--keep-disks").code == 0
    assert sternad.requests[-1][:2] == ("DELETE", "/v1/vms/web?keep_disks=true")
    assert sternad.vms == {}


def test_a_name_is_never_taken_for_a_path(sterna, sternad):
    assert sterna("vm", "show", "a/../b?c").code == 4
    assert sternad.requests[-1][1] == "/v1/vms/a%2F..%2Fb%3Fc"


def test_hosts_are_listed_and_shown(sterna, sternad):
    rows = sterna("host", "list").out.splitlines()
    assert rows[3].split() == [
        "hv-c",
        "down",
        "https://10.0.0.3:7443",
        "-",
        "-",
        "-",
        "connection",
        "refused",
    ]
    shown = sterna("host", "show").out
    assert "5 GiB free of 8 GiB" in shown
    assert "default: /disks, shared, 5 GiB free of 10 GiB" in shown
    assert json.loads(sterna("host", "show", "hv-a", "-o", "json").out)["memory_free"] == 5 << 30


def test_a_hosts_certificate_is_read_from_its_own_files(sterna, tmp_path, monkeypatch):
    monkeypatch.delenv("STERNA_HOST")
    (tmp_path / "sternad.toml").write_text(f'state_dir = "{tmp_path}/state"\n')
    missing = sterna("host", "certificate")
    assert missing.code == 2
    assert "when sternad starts" in missing.err
    (tmp_path / "state" / "identity").mkdir(parents=True)
    (tmp_path / "state" / "identity" / "certificate.pem").write_text("PEM\n")
    assert sterna("host", "certificate").out == "PEM\n"
    assert sterna("host", "certificate", "--host", "https://10.0.0.2:7443").code == 2


@pytest.mark.parametrize(
    ("kind", "options"), [("switch", ["--uplink", "eth1"]), ("pool", ["--path", "/disks"])]
)
def test_switches_and_pools_come_and_go(sterna, sternad, kind, options):
    assert sterna(kind, "create", "one", *options).out.startswith(f"created {kind} one: ")
    assert sterna(kind, "list").out.splitlines()[1].startswith("one")
    assert len(json.loads(sterna(kind, "list", "-o", "json").out)) == 1
    assert sterna(kind, "delete", "one").code == 0
    assert sterna(kind, "delete", "one").code == 4
    assert sterna(kind, "list").out == ""


def test_control_characters_of_others_never_reach_the_terminal(sterna, sternad):
    sternad.add_vm("web")["notes"] = ["\x1b[2Jgone\x07"]
    out = sterna("vm", "show", "web").out
    assert "[2Jgone" in out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_the_version_is_printed(sterna):
    assert sterna("--version").out.startswith("sterna 0.")
