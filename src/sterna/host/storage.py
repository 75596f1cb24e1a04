"""Pools: directories for disks, each proven by an identity that is written inside it.

Promises: a pool is used only while its directory holds the identity that was read when it was
declared, so an unmounted share is reported, never filled or made anew; two hosts share a pool only
if both read the same identity; a volume's path never leaves its pool. Never deletes what is in a
pool, but for a volume that it is told to.

All functions block on the file system; a hung share hangs them. `registry.Pools` guards the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
import threading
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sterna import clock
from sterna.errors import BadSpec, PoolUnusable, VolumeForbidden
from sterna.host.store import replace_file
from sterna.model.disk import STRICT
from sterna.model.edge import dump_json, parse_json
from sterna.model.host import Pool, PoolFacts

IDENTITY_FILE = ".sterna-pool.json"
PART_CHANCE = "[0-9a-f]" * 8  # of `qemu.image`: an image has such a name until it is whole
_IDENTITY_LIMIT = 64 << 10  # bytes; ours has 150, a longer file is not ours
_NAME_LIMIT = 255  # bytes of a file name, on every file system that matters


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What `.sterna-pool.json` holds."""

    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    identity: str  # UUID
    created: str = ""


# ---- identity -------------------------------------------------------------------------------


def declare(pool: Pool) -> Pool:
    """`pool` with its identity: the one in its directory, or a new one that is written there.

    The directory of a pool that is not shared is made if need be. A pool that names an identity
    joins that one or none. Raises PoolUnusable; then nothing is left behind.
    """
    pool = replace(pool, path=os.path.normpath(pool.path))
    directory = Path(pool.path)
    made = _make_directory(pool, directory)
    try:
        found = _join(pool, directory)
        _check_writable(pool)
    except OSError as error:
        _remove_directories(made)
        raise _unusable(pool, error) from error
    except BaseException:
        _remove_directories(made)
        raise
    return replace(pool, identity=found.identity)


def _join(pool: Pool, directory: Path) -> Identity:
    found = read_identity(pool)
    if found is None and pool.identity:
        raise _missing(pool)
    if found is None:
        return _write_identity(directory)
    if pool.identity not in ("", found.identity):
        raise _other(pool, found)
    return found


def read_identity(pool: Pool) -> Identity | None:
    """The identity in the pool's directory; None if it has none. Raises PoolUnusable, OSError."""
    path = Path(pool.path) / IDENTITY_FILE
    try:
        with path.open("rb") as file:
            return parse_json(Identity, file.read(_IDENTITY_LIMIT), IDENTITY_FILE)
    except FileNotFoundError:
        return None
    except BadSpec as error:
        raise PoolUnusable(
            pool=pool.name,
            reason=f"its identity {path} is damaged ({error.facts['reason']})",
            fix="Restore that file; if no host uses the pool, delete the file and the pool",
        ) from error


def check(pool: Pool) -> None:
    """Raises PoolUnusable unless the pool's own directory is there now and can be written to."""
    try:
        if not Path(pool.path).is_dir():
            raise _missing(pool)
        found = read_identity(pool)
        if found is None:
            raise _missing(pool)
        if found.identity != pool.identity:
            raise _other(pool, found)
        _check_writable(pool)
    except OSError as error:
        raise _unusable(pool, error) from error


def facts(pool: Pool) -> PoolFacts:
    """Space and state of `pool` now; a pool with a problem has no space."""
    try:
        check(pool)
        room = os.statvfs(pool.path)
    except PoolUnusable as error:
        return PoolFacts(pool=pool, total=0, free=0, problem=str(error.facts["reason"]))
    except OSError as error:
        return PoolFacts(pool=pool, total=0, free=0, problem=str(error.strerror))
    return PoolFacts(
        pool=pool, total=room.f_blocks * room.f_frsize, free=room.f_bavail * room.f_frsize
    )


def withdraw(pool: Pool) -> None:
    """Undo `declare`, as far as that harms nobody: an identity goes if nothing else is there."""
    directory = Path(pool.path)
    with contextlib.suppress(OSError, PoolUnusable):
        found = read_identity(pool)
        if pool.shared or found is None or found.identity != pool.identity:
            return
        if [entry.name for entry in os.scandir(directory)] == [IDENTITY_FILE]:
            (directory / IDENTITY_FILE).unlink()


def _write_identity(directory: Path) -> Identity:
    """A new identity, or that of another host that was quicker."""
    mine = Identity(identity=str(uuid.uuid4()), created=clock.now())
    path = directory / IDENTITY_FILE
    draft = directory / f"{IDENTITY_FILE}.{mine.identity}"
    replace_file(draft, dump_json(mine) + b"\n")
    try:
        os.link(draft, path)  # unlike rename, never replaces
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        draft.rename(path)  # no hard links here (FAT, some SMB shares); the last one wins
    finally:
        draft.unlink(missing_ok=True)
    return parse_json(Identity, path.read_bytes(), IDENTITY_FILE)


def _make_directory(pool: Pool, directory: Path) -> list[Path]:
    """Make the directory; what was made, innermost first."""
    if directory.is_dir():
        return []
    if pool.shared or pool.identity:
        raise _missing(pool)
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        _remove_directories(made)
        raise _unusable(pool, error) from error
    return made


def _remove_directories(made: list[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty any more: not ours any more
        for path in made:
            path.rmdir()


def _check_writable(pool: Pool) -> None:
    if not os.access(pool.path, os.W_OK | os.X_OK):
        raise PoolUnusable(
            pool=pool.name,
            reason=f"{pool.path} cannot be written to",
            fix=f"Look at its owner and its mount options with: findmnt -T {pool.path}",
        )


def _missing(pool: Pool) -> PoolUnusable:
    return PoolUnusable(
        pool=pool.name,
        reason=f"its identity is not in {pool.path}: nothing is mounted at {pool.path}?",
        fix=f"Mount it, then look with: findmnt -T {pool.path}",
    )


def _other(pool: Pool, found: Identity) -> PoolUnusable:
    return PoolUnusable(
        pool=pool.name,
        reason=f"{pool.path} holds another pool: {found.identity} instead of {pool.identity}",
        fix=f"Mount the right one, or delete the pool with: sterna pool delete {pool.name}",
    )


def _unusable(pool: Pool, error: OSError) -> PoolUnusable:
    return PoolUnusable(
        pool=pool.name,
        reason=f"{error.filename or pool.path}: {error.strerror}",
        fix=f"Look at the file system with: findmnt -T {pool.path}",
    )


# ---- volumes --------------------------------------------------------------------------------


def volume_path(pool: Pool, volume: str) -> Path:
    """Where `volume` of `pool` is or would be. Raises VolumeForbidden if that is not inside."""

    def forbidden(reason: str) -> VolumeForbidden:
        return VolumeForbidden(volume=volume, pool=pool.name, reason=reason)

    if not volume or volume.startswith(".") or "/" in volume or not volume.isprintable():
        raise forbidden("it is not a plain file name")
    if len(volume.encode()) > _NAME_LIMIT:
        raise forbidden(f"it is longer than {_NAME_LIMIT} bytes")
    path = Path(pool.path) / volume
    try:
        if path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                path.stat()  # finds links that go round in circles; `resolve` does not since 3.13
            if path.resolve().parent != Path(pool.path).resolve():
                raise forbidden(f"it is a link to {path.resolve()}, outside the pool")
    except OSError as error:
        raise forbidden(f"it is a link that leads nowhere ({error})") from error
    return path


def peek(pool: Pool, volume: str, length: int) -> tuple[int, bytes]:
    """Size of a plain file in `pool`, and its first bytes. Raises VolumeForbidden, OSError."""
    path = volume_path(pool, volume)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return found.st_size, os.pread(fd, length, 0)
    finally:
        os.close(fd)


def delete_volume(pool: Pool, volume: str) -> None:
    """Delete `volume`, which may be gone already; but not while its pool is not there.

    So is what was to become it, if whoever made it has died. Raises VolumeForbidden, PoolUnusable.
    """
    path = volume_path(pool, volume)
    check(pool)
    try:
        for part in path.parent.glob(f".{glob.escape(path.name)}.{PART_CHANCE}.part"):
            part.unlink(missing_ok=True)
        _unlink(path)
    except OSError as error:
        raise _unusable(pool, error) from error


def _unlink(path: Path) -> None:
    """The name goes at once; the space of a large file, which takes seconds, a moment later.

    A file lives as long as somebody has it open: we do, and let go of it beside everything else.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError:  # not even to be read: then it takes as long as it takes
        path.unlink(missing_ok=True)
        return
    try:
        path.unlink(missing_ok=True)
    finally:
        threading.Thread(target=os.close, args=(file,), name="free-space", daemon=True).start()


def sync_directory(pool: Pool) -> None:
    """New, renamed and deleted names of `pool` survive a power cut. Raises PoolUnusable."""
    try:
        fd = os.open(pool.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _unusable(pool, error) from error
