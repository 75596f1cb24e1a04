"""sternad's configuration: merged in order, checked whole, refused with one clear sentence."""

from pathlib import Path

import pytest

from sterna import config
from sterna.errors import BadConfig


@pytest.fixture
def load(tmp_path):
    def load(text: str, **conf_d: str) -> config.Config:
        (tmp_path / "sternad.toml").write_text(text)
        (tmp_path / "conf.d").mkdir(exist_ok=True)
        for name, extra in conf_d.items():
            (tmp_path / "conf.d" / f"{name}.toml").write_text(extra)
        return config.load(tmp_path / "sternad.toml")

    return load


def refusal(load, text: str, **conf_d: str) -> str:
    with pytest.raises(BadConfig) as caught:
        load(text, **conf_d)
    assert "\n" not in caught.value.message
    assert "pydantic" not in caught.value.message
    return caught.value.message


def test_nothing_listens_on_a_network_by_default(load):
    got = load("")
    assert got.listen is None
    assert got.migration_address == ""
    assert got.name
    assert got.socket == Path("/run/sterna/sternad.sock")


def test_everything_can_be_set(load):
    got = load(
        """
        name = "hv-a"
        state_dir = "/srv/state"
        log_level = "debug"
        [listen]
        address = "192.0.2.1"
        port = 7000
        [migration]
        address = "198.51.100.1"
        reserve_memory = "1GiB"
        [qemu]
        accel = "tcg"
        arguments = ["-L", "/opt/qemu"]
        """
    )
    assert got.name == "hv-a"
    assert got.listen == config.Listen(address="192.0.2.1", port=7000)
    assert got.migration_address == "198.51.100.1"
    assert got.migration.reserve_memory == 1 << 30
    assert got.qemu.arguments == ("-L", "/opt/qemu")


def test_moves_arrive_where_the_listener_is_unless_said_otherwise(load):
    assert load('[listen]\naddress = "192.0.2.1"').migration_address == "192.0.2.1"


def test_files_of_conf_d_are_merged_by_key_and_the_last_wins(load):
    got = load(
        'name = "hv-a"\n[qemu]\naccel = "kvm"\nbinary = "/opt/q"',
        **{"10-first": '[qemu]\naccel = "tcg"', "20-second": 'name = "hv-z"'},
    )
    assert (got.name, got.qemu.accel, got.qemu.binary) == ("hv-z", "tcg", "/opt/q")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('nmae = "x"', "unknown key 'nmae'"),
        ('[qemu]\nacel = "kvm"', "unknown key 'qemu.acel'"),
        ("[peers.b]\nurl = 'https://192.0.2.2'", "peers is not used any more"),
        ('token_file = "/etc/sterna/token"', "sterna host invite"),
        ('[listen]\naddress = "192.0.2.1"\nkey = "/k"', "listen.key is not used any more"),
        ('[qemu]\naccel = "hvf"', "qemu.accel"),
        ('[listen]\naddress = "the office"', "listen.address"),
        ('[migration]\naddress = "300.1.1.1"', "migration.address"),
        ('[migration]\nreserve_memory = "-1GiB"', "'-1GiB' is not a size"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_mistake_is_named(load, text, words):
    message = refusal(load, text)
    assert words in message
    assert "sternad.toml" in message


def test_a_mistake_in_conf_d_names_that_file(load):
    assert "50-bad.toml" in refusal(load, "", **{"50-bad": "[[["})


def test_a_named_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(BadConfig, match="No such file"):
        config.load(tmp_path / "absent.toml")


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    (tmp_path / "sternad.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(BadConfig, match="not valid TOML"):
        config.load(tmp_path / "sternad.toml")


def test_networks_of_moves_are_tried_in_their_order(load):
    got = load(
        """
        [listen]
        address = "192.0.2.1"
        [migration]
        addresses = ["198.51.100.1", "203.0.113.1", "198.51.100.1"]
        limit = "100MB"
        cache = "64MiB"
        grace = 5
        encryption = "off"
        """
    )
    assert got.migration_addresses == ("198.51.100.1", "203.0.113.1")
    assert got.migration_address == "198.51.100.1"
    assert (got.migration.limit, got.migration.cache) == (100_000_000, 64 << 20)
    assert load('[migration]\naddress = "192.0.2.7"').migration_addresses == ("192.0.2.7",)
    assert load("").migration.encryption == "required"


@pytest.mark.parametrize("setting", ['addresses = ["hv-a"]', "grace = 0", 'encryption = "maybe"'])
def test_a_setting_of_moves_that_makes_no_sense_is_named(load, setting):
    assert f"migration.{setting.split()[0]}" in refusal(load, f"[migration]\n{setting}")
