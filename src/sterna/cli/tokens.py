"""API tokens of this user: in the environment, or in a file for each host that others cannot read."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from sterna.errors import BadAPIToken, BadHost, NotAllowed

VARIABLE = "STERNA_TOKEN"
MAX = 200  # bytes; ours have 69
PREFIX = "sternat1."
TICKET = "kerberos "  # instead of a token: the user's own ticket for that service


def home() -> Path:
    """The user's own settings of sterna."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "sterna"


def file_of(url: str) -> Path:
    """Where the token for the host at `url` is kept. Raises BadHost."""
    parts = urlsplit(url)
    try:
        port = parts.port or 7443
    except ValueError as error:
        raise BadHost(host=url, reason=str(error)) from error
    name = f"{parts.hostname}-{port}".replace("/", "_").replace(":", "_")
    return home() / "tokens" / name


def of(url: str) -> str:
    """The token for that host; empty if there is none. Raises BadAPIToken, BadHost, NotAllowed."""
    if not url.startswith("https://"):
        return ""
    if given := os.environ.get(VARIABLE):
        return checked(given, f"${VARIABLE}")
    file = file_of(url)
    try:
        with file.open() as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                raise NotAllowed(
                    what=f"using {file}", reason="others can read it", fix=f"chmod 600 {file}"
                )
            return checked(opened.read(MAX), str(file))
    except OSError:
        return ""


def keep(url: str, token: str) -> Path:
    """Write it down for the next commands; nobody else can read it at any moment."""
    file = file_of(url)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as opened:
        opened.write(f"{token}\n")
    draft.rename(file)
    return file


def checked(text: str, where: str) -> str:
    """`text` if it looks like a token, or tells of tickets. Raises BadAPIToken, which does not repeat it."""
    token = text.strip()
    if not token.startswith((PREFIX, TICKET)) or not token.isascii() or not token.isprintable():
        raise BadAPIToken(where=where)
    return token
