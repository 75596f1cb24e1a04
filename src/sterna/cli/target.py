"""Which daemon a command talks to, and with which token and certificate.

A host is a URL, or a name in the configuration: `~/.config/sterna/hosts.toml` of the user, then
`[peers]` of this machine's sternad. Nothing given means this machine's own daemon. What is not
needed is not read, so that commands work for users who may not read sternad's files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sterna.client import CONNECT_S, DEFAULT_SOCKET, Client
from sterna.errors import BadConfig, HostUnknown, NotAllowed

CONFIG = Path("/etc/sterna/sternad.toml")


def client(host: str, token_file: str, certificate: str, connect_s: float | None) -> Client:
    """A client of `host`: a URL, a known name, or empty for this machine.

    Raises HostUnknown for a name that is nowhere, BadConfig for a file that cannot be used.
    """
    timeout = CONNECT_S if connect_s is None else connect_s
    if not host:
        run_dir = _daemon().get("run_dir")
        socket = Path(run_dir) / "sternad.sock" if run_dir else DEFAULT_SOCKET
        return Client(f"unix://{socket}", connect_s=timeout)
    if host.startswith("unix://"):
        return Client(host, connect_s=timeout)
    entry = {"url": host} if "://" in host else _entry(host)
    url = str(entry.get("url", ""))
    token_path = token_file or os.environ.get("STERNA_TOKEN_FILE", "") or entry.get("token_file")
    pinned = certificate or entry.get("certificate")
    if url.startswith("unix://"):
        return Client(url, connect_s=timeout)
    return Client(
        url,
        token=_token(str(token_path), url) if token_path else "",
        certificate=Path(pinned) if pinned else None,
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
    peers = _user() | {key: value for key, value in _peers().items() if key not in _user()}
    if name not in peers:
        raise HostUnknown(host="this machine", peer=name, known=", ".join(sorted(peers)) or "none")
    return peers[name]


def _user() -> dict[str, dict[str, Any]]:
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    file = Path(home).expanduser() / "sterna" / "hosts.toml"
    return {key: value for key, value in _read(file).items() if isinstance(value, dict)}


def _peers() -> dict[str, dict[str, Any]]:
    daemon = _daemon()
    token_file = daemon.get("token_file", "/etc/sterna/token")
    peers = daemon.get("peers")
    if not isinstance(peers, dict):
        return {}
    return {
        key: {"token_file": token_file, **value}
        for key, value in peers.items()
        if isinstance(value, dict)
    }


def _daemon() -> dict[str, Any]:
    """Top-level keys and peers, as sternad itself merges its files."""
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


def _token(path: str, url: str) -> str:
    try:
        token = Path(path).read_text().strip()
    except PermissionError as error:
        raise NotAllowed(
            what=f"reading the token in {path}",
            reason="permission denied",
            fix="Run the command with sudo, or give a token of your own with --token-file",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadConfig(
            path=path, reason=f"the token for {url} cannot be read: {reason}"
        ) from error
    if not token.isascii() or not token.isprintable():
        raise BadConfig(path=path, reason="a token is one line of plain characters")
    return token
