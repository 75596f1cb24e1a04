"""Finds kernel modules in an unpacked kernel package and puts them in the order of loading.

Reads each module's own `.modinfo` (`depends=`, `softdep=`), because modules.dep exists only where
depmod ran. Handles modules that are plain, xz (Debian 13) or gzip. Promises that every dependency
comes before what needs it, and to leave out, without error, an optional module that is not there.
"""

import gzip
import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from sterna.lab.guest.debian import GuestBuildError

_NAME = re.compile(r"^(?P<name>.+)\.ko(\.xz|\.gz)?$")
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
_SOFTDEP = re.compile(rb"(?:^|\0)softdep=pre: ([^\0]*)\0")


def _plain_name(name: str) -> str:
    return name.replace("-", "_")


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    return gzip.decompress(data) if path.suffix == ".gz" else data


def _files(root: Path) -> dict[str, Path]:
    matches = ((path, _NAME.match(path.name)) for path in root.rglob("*.ko*"))
    return {_plain_name(match["name"]): path for path, match in matches if match}


def _built_in(root: Path) -> set[str]:
    listings = (listing.read_text() for listing in root.rglob("modules.builtin"))
    return {_plain_name(Path(line).stem) for text in listings for line in text.split()}


def _dependencies(content: bytes) -> Iterator[tuple[str, bool]]:
    """(name, whether it must be there) of what a module asks to be loaded before it."""
    for text in _DEPENDS.findall(content):
        yield from ((_plain_name(name), True) for name in text.decode().split(",") if name)
    for text in _SOFTDEP.findall(content):
        yield from ((_plain_name(name), False) for name in text.decode().split())


def needed(
    root: Path, required: Iterable[str], optional: Iterable[str] = ()
) -> list[tuple[str, bytes]]:
    """(name, content) of the wanted modules below `root` and all they depend on, in order."""
    found, built_in = _files(root), _built_in(root)
    order: dict[str, bytes] = {}

    def add(name: str, must: bool) -> None:
        if name in order or name in built_in:
            return
        if name not in found:
            if must:
                raise GuestBuildError(f"the kernel package has no module {name}")
            return
        content = _content(found[name])
        for dependency, hard in _dependencies(content):
            add(dependency, must and hard)
        order[name] = content

    for name in required:
        add(_plain_name(name), True)
    for name in optional:
        add(_plain_name(name), False)
    return list(order.items())
