"""Configuration of `sternad`: one TOML file and a `conf.d` beside it, read once, checked whole.

Files of `conf.d` are merged in the order of their names, tables by key, later ones win. Unknown
keys are refused: a misspelt setting must never be a silent default. Nothing listens on a network
unless `[listen]` says so.
"""

from __future__ import annotations

import socket
import tomllib
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from sterna.errors import BadConfig, BadSize
from sterna.units import parse_size

STRICT: dict[str, Any] = {"extra": "forbid"}
DEFAULT_PATH = Path("/etc/sterna/sternad.toml")
FORMER = ("token_file", "peers")  # how hosts trusted each other before they were paired
FORMER_LISTEN = ("certificate", "key")
Size = Annotated[int, BeforeValidator(parse_size)]


def _short_hostname() -> str:
    return socket.gethostname().split(".")[0].lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """The HTTPS listener for other hosts and remote users. Off unless given."""

    __pydantic_config__ = STRICT

    address: str
    port: int = 7443
    web_certificate: Path | None = None  # PEM, for browsers that ask for one of its names
    web_key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use the Unix socket besides root."""

    __pydantic_config__ = STRICT

    group: str | None = None  # its members may; default: sterna, if there is one; "": nobody
    group_role: Literal["viewer", "operator", "migrator", "admin"] = "migrator"  # that they have


@dataclass(frozen=True, slots=True, kw_only=True)
class Kerberos:
    """Users who show tickets, over HTTPS. Off unless there is a keytab."""

    __pydantic_config__ = STRICT

    keytab: Path | None = None  # keys of SERVICE/HOST, for browsers of HTTP/HOST too
    service: str = "sterna"  # class of the service names
    channel_binding: Literal["required", "offered"] = "required"  # to the connection's TLS
    delegation: Literal["required", "offered"] = "offered"  # of users, with VMs that are sent here


@dataclass(frozen=True, slots=True, kw_only=True)
class QEMU:
    __pydantic_config__ = STRICT

    binary: str = "qemu-system-x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    probe_kernel: Path | None = None  # kernel that proves KVM; default: the newest in /boot
    arguments: tuple[str, ...] = ()  # before all others, such as -L DIR for a private build
    cpu_mask: tuple[str, ...] = ()  # features of the processor that guests here do not get: "avx2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    __pydantic_config__ = STRICT

    address: str = ""  # of this host, where moves are received; default: the listener's
    addresses: tuple[str, ...] = ()  # more of them, on other networks, the preferred ones first
    reserve_memory: Size = 256 << 20  # bytes that moves never take from this host
    encryption: Literal["required", "off"] = "required"  # of QEMU's own connections
    limit: Size | None = None  # bytes/s that all moves away may use together; None: no limit
    cache: Size = 1 << 30  # bytes of pages that a relay remembers, at most, a move and side
    grace: Annotated[float, Field(ge=1, le=3600)] = 30.0  # seconds that a link may be down
    # of QEMU's multifd, in direct moves; 0: a single stream; default: by processors and link
    channels: Annotated[int, Field(ge=0, le=8)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    __pydantic_config__ = STRICT

    name: str = field(default_factory=_short_hostname)
    state_dir: Path = Path("/var/lib/sterna")
    run_dir: Path = Path("/run/sterna")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    listen: Listen | None = None
    access: Access = Access()
    kerberos: Kerberos = Kerberos()
    qemu: QEMU = QEMU()
    migration: Migration = Migration()

    @property
    def socket(self) -> Path:
        """The daemon's Unix socket, for root and the group of `access`."""
        return self.run_dir / "sternad.sock"

    @property
    def migration_address(self) -> str:
        """Where this host receives moves; empty if it cannot."""
        return next(iter(self.migration_addresses), "")

    @property
    def migration_addresses(self) -> tuple[str, ...]:
        """All of this host's addresses for moves, the preferred one first."""
        named = (self.migration.address, *self.migration.addresses)
        found = tuple(dict.fromkeys(address for address in named if address))
        return found or ((self.listen.address,) if self.listen else ())


def load(path: Path) -> Config:
    """The configuration in `path` and its `conf.d`; a missing default file means all defaults.

    Raises BadConfig, naming the file and the key.
    """
    merged: dict[str, Any] = {}
    files = [path, *sorted((path.parent / "conf.d").glob("*.toml"))]
    for file in files:
        if file == path and path == DEFAULT_PATH and not path.exists():
            continue
        _merge(merged, _read(file))
    where = ", ".join(str(file) for file in files if file.exists()) or str(path)
    _refuse_former(merged, where)
    try:
        config: Config = TypeAdapter(Config).validate_python(merged)
    except BadSize as error:
        raise BadConfig(path=where, reason=error.message) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = (
            f"unknown key {key!r}"
            if first["type"] in ("unexpected_keyword_argument", "extra_forbidden")
            else f"{key}: {first['msg']}"
        )
        raise BadConfig(path=where, reason=reason) from error
    _check(config, where)
    return config


def _refuse_former(merged: dict[str, Any], where: str) -> None:
    """Hosts that shared a token must not go on as if nothing protected them less."""
    listen = merged.get("listen")
    given = [f"listen.{key}" for key in FORMER_LISTEN if isinstance(listen, dict) and key in listen]
    found = [*(key for key in FORMER if key in merged), *given]
    if found:
        raise BadConfig(
            path=where,
            reason=f"{found[0]} is not used any more, hosts are paired now: remove it and start "
            "sternad, then run `sterna host invite` here and what it prints on the other host",
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise BadConfig(path=file, reason=str(error.strerror)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(path=file, reason=f"not valid TOML: {error}") from error


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _check(config: Config, where: str) -> None:
    listen = config.listen
    if listen is not None and bool(listen.web_certificate) != bool(listen.web_key):
        raise BadConfig(path=where, reason="listen.web_certificate and listen.web_key go together")
    for key, value in (
        ("listen.address", config.listen.address if config.listen else ""),
        ("migration.address", config.migration.address),
        *(("migration.addresses", address) for address in config.migration.addresses),
    ):
        if value:
            try:
                ip_address(value)
            except ValueError as error:
                raise BadConfig(path=where, reason=f"{key}: {error}") from error
