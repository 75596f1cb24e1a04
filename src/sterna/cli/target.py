"""Which daemon a command talks to, and by which certificates the two know each other.

A host is a URL, or a name: in `~/.config/sterna/hosts.toml` of the user, or of a host that this
machine's sternad trusts. Nothing given means this machine's own daemon. Over HTTPS a command speaks
by an API token or the user's Kerberos tickets, if it was told so for that host, else with this machine's own key, which root alone can
read. What is not needed is not read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sterna.cli import tokens
from sterna.client import CONNECT_S, DEFAULT_SOCKET, Client
from sterna.errors import BadConfig, HostUnknown, NotAllowed

CONFIG = Path("/etc/sterna/sternad.toml")
STATE_DIR = "/var/lib/sterna"


def client(host: str, certificate: str, connect_s: float | None, reason: str = "") -> Client:
    """A client of `host`: a URL, a known name, or empty for this machine.

    `reason` is for its audit. Over HTTPS an API token speaks for whoever has one. Raises HostUnknown
    for a name that is nowhere, BadConfig for a file that cannot be used, NotAllowed for a user who
    may not speak for this machine.
    """
    timeout = CONNECT_S if connect_s is None else connect_s
    said = {"Sterna-Reason": quote(reason)} if reason else {}
    if not host:
        run_dir = _daemon().get("run_dir")
        socket = Path(run_dir) / "sternad.sock" if run_dir else DEFAULT_SOCKET
        return Client(f"unix://{socket}", headers=said, connect_s=timeout)
    if host.startswith("unix://"):
        return Client(host, headers=said, connect_s=timeout)
    entry = {"url": host} if "://" in host else _entry(host)
    url = str(entry.get("url", ""))
    if url.startswith("unix://"):
        return Client(url, headers=said, connect_s=timeout)
    pinned = certificate or entry.get("certificate")
    identity = None
    proof = None
    token = tokens.of(url)
    if token.startswith(tokens.TICKET):
        from sterna.cli.tickets import by_ticket  # noqa: PLC0415 - start-up time

        proof = by_ticket(url, token.removeprefix(tokens.TICKET))
    elif token:
        said["Authorization"] = f"Bearer {token}"
    elif url.startswith("https://"):
        identity = _identity()
        said["Sterna-For"] = quote(f"local:{os.environ.get('SUDO_USER') or 'root'}")
    return Client(
        url,
        certificate=Path(str(pinned)) if pinned else None,
        pem="" if pinned else str(entry.get("pem", "")),
        identity=identity,
        headers=said,
        proof=proof,
        connect_s=timeout,
    )


def known() -> list[str]:
    """Names that `--host` takes, as far as they can be read."""
    return sorted({*_user(), *_peers()})


def daemon_file() -> Path:
    """The configuration of this machine's sternad."""
    return Path(os.environ.get("STERNA_CONFIG") or CONFIG)


def daemon_settings() -> dict[str, Any]:
    """What the configuration of this machine's sternad says, its conf.d included."""
    return _daemon()


def _entry(name: str) -> dict[str, Any]:
    user = _user()
    peers = user if name in user else {**_peers(), **user}
    if name not in peers:
        raise HostUnknown(host="this machine", peer=name, known=", ".join(sorted(peers)) or "none")
    return peers[name]


def _state() -> Path:
    return Path(str(_daemon().get("state_dir", STATE_DIR)))


def _identity() -> tuple[Path, Path] | None:
    """Certificate and key of this machine; None if it has none."""
    folder = _state() / "identity"
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    try:
        key.open("rb").close()
    except PermissionError as error:
        raise NotAllowed(
            what=f"reading {key}",
            reason="permission denied",
            fix="Run the command with sudo, which speaks to other hosts as this machine; or log in "
            "with an API token: sterna login HOST",
        ) from error
    except OSError:
        return None
    return certificate, key


def _user() -> dict[str, dict[str, Any]]:
    file = tokens.home() / "hosts.toml"
    return {key: value for key, value in _read(file).items() if isinstance(value, dict)}


def _peers() -> dict[str, dict[str, Any]]:
    """The hosts that this machine's sternad trusts, as far as they can be read."""
    found = {}
    try:
        for file in sorted((_state() / "peers").glob("*.json")):
            record = json.loads(file.read_text())
            pem = "\n".join(str(record.get(key) or "") for key in ("certificate", "next"))
            found[str(record["name"])] = {"url": str(record["url"]), "pem": pem}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return found  # not for us to read, or damaged: sternad says so
    return found


def _daemon() -> dict[str, Any]:
    """Top-level keys, as sternad itself merges its files."""
    file = daemon_file()
    merged: dict[str, Any] = {}
    for path in [file, *sorted((file.parent / "conf.d").glob("*.toml"))]:
        for key, value in _read(path).items():
            old = merged.get(key)
            merged[key] = (
                old | value if isinstance(old, dict) and isinstance(value, dict) else value
            )
    return merged


def _read(file: Path) -> dict[str, Any]:
    """The TOML in `file`; nothing if it is missing or not for us to read."""
    try:
        text = file.read_text()
    except OSError:
        return {}
    except UnicodeDecodeError as error:
        raise BadConfig(path=file, reason="not a text file") from error
    import tomllib  # noqa: PLC0415 - start-up time

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(path=file, reason=f"not valid TOML: {error}") from error
