"""What the installed QEMU can do, by asking it, never by its version; and KVM or emulation.

Promises: nothing but short-lived QEMUs of our own is started and nothing of them stays; answers are
cached by the binary's path, size and time, so that a daemon's second start asks nothing; KVM is
chosen only where a guest has run under it in this boot of the host. A cache that cannot be read or
written only costs time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sterna.config import QEMU
from sterna.errors import BadSpec, QEMULost, QEMUMissing, QEMUUnsupported
from sterna.model import edge
from sterna.qemu import process, proof
from sterna.qemu.argv import RunPaths, monitors
from sterna.qemu.session import Session

log = logging.getLogger(__name__)

FORMAT = 1  # of the cached answers; another one is asked for anew
END_S = 5.0  # a QEMU without a machine ends in milliseconds
_Q35 = "pc-q35-"
DEVICE = Path("/dev/kvm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """One QEMU binary with its arguments."""

    binary: str  # absolute path
    version: str  # for people
    machines: tuple[str, ...]  # versioned q35 types, newest first
    default_machine: str  # what q35 stands for
    cpu_models: tuple[str, ...]
    migration_capabilities: frozenset[str]
    migration_parameters: frozenset[str]
    commands: frozenset[str]
    kvm: bool  # compiled in; whether it works here is another question
    sandbox: bool


async def probe(
    binary: str, arguments: Sequence[str] = (), cache: Path | None = None
) -> Capabilities:
    """Ask `binary`, or the folder `cache` what it answered before. Raises QEMUMissing."""
    path = find(binary)
    key = identity(path, arguments)
    file = cache / f"qemu-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json" if cache else None
    if file is not None and (known := load(file, key)) is not None:
        with contextlib.suppress(BadSpec):  # written by another version of Sterna
            return edge.parse(Capabilities, known, str(file))
    found = await _ask(path, arguments)
    if file is not None:
        await asyncio.to_thread(save, file, key, edge.dump(found))
    return found


def find(binary: str) -> str:
    """The absolute path of `binary`. Raises QEMUMissing."""
    path = shutil.which(binary)
    if path is None:
        raise QEMUMissing(path=binary, reason="there is no such program")
    return str(Path(path).absolute())


def identity(path: str, arguments: Sequence[str] = ()) -> str:
    """Changes when the file or the arguments do."""
    stat = Path(path).stat()
    return json.dumps([path, stat.st_size, stat.st_mtime_ns, *arguments])


def load(file: Path, key: str) -> dict[str, Any] | None:
    """What was saved under `key`; None if it was another one, or is not readable."""
    try:
        saved = json.loads(file.read_text())
        return saved["answer"] if (saved["format"], saved["key"]) == (FORMAT, key) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save(file: Path, key: str, answer: dict[str, Any]) -> None:
    """For the next `load`. A cache need not be durable; half a file is never seen."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
            json.dump({"format": FORMAT, "key": key, "answer": answer}, new)
        Path(new.name).replace(file)
    except OSError as error:
        log.warning("cannot keep what QEMU answered in %s: %s", file, error.strerror)


async def _ask(path: str, arguments: Sequence[str]) -> Capabilities:
    async with asking(path, arguments) as session:
        return await _answers(path, session)


@asynccontextmanager
async def asking(path: str, arguments: Sequence[str]) -> AsyncIterator[Session]:
    """A QEMU without a machine, to be asked for what it is; it ends with the body.

    Raises QEMUMissing if it does not work.
    """
    with tempfile.TemporaryDirectory(prefix="sterna-") as directory:
        paths = RunPaths(Path(directory))
        command = [path, *arguments, "-nodefaults", "-no-user-config", "-display", "none"]
        started = await process.spawn(
            [*command, "-machine", "none", "-S", *monitors(paths)], log=paths.log
        )
        try:
            session = await Session.connect(
                path, paths.control, paths.oob, is_alive=lambda: started.is_alive
            )
            try:
                yield session
            finally:
                await session.close()
        except QEMULost as error:
            reason = started.log_tail(1) or error.message
            raise QEMUMissing(path=path, reason=f"it does not work: {reason}") from error
        finally:
            started.kill()
            async with asyncio.timeout(END_S):
                await started.wait()


async def _answers(path: str, session: Session) -> Capabilities:
    version = (await session.execute("query-version"))["qemu"]
    machines = await session.execute("query-machines")
    models = await session.execute("query-cpu-definitions")
    migration = await session.execute("query-migrate-capabilities")
    kvm = await session.execute("query-kvm")
    options = await session.execute("query-command-line-options")
    schema = {entry["name"]: entry for entry in await session.execute("query-qmp-schema")}
    parameters = schema[schema["migrate-set-parameters"]["arg-type"]]["members"]
    q35 = [machine for machine in machines if machine["name"].startswith(_Q35)]
    return Capabilities(
        binary=path,
        version=f"{version['major']}.{version['minor']}.{version['micro']}",
        machines=tuple(sorted((one["name"] for one in q35), key=_release, reverse=True)),
        default_machine=next((one["name"] for one in q35 if one.get("alias") == "q35"), ""),
        cpu_models=tuple(sorted(model["name"] for model in models)),
        migration_capabilities=frozenset(one["capability"] for one in migration),
        migration_parameters=frozenset(member["name"] for member in parameters),
        commands=frozenset(
            name for name, entry in schema.items() if entry["meta-type"] == "command"
        ),
        kvm=bool(kvm["present"]),
        sandbox=any(option["option"] == "sandbox" for option in options),
    )


def _release(machine: str) -> list[int]:
    """`pc-q35-10.0` after `pc-q35-7.2`."""
    numbers = machine.removeprefix(_Q35).split(".")
    return [int(number) if number.isdigit() else -1 for number in numbers]


# ---- KVM or emulation ----------------------------------------------------------------------


async def choose_accel(
    qemu: QEMU, cache: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[Literal["kvm", "tcg"], str]:
    """What VMs of this host run under, and why. `say` is told before something that takes long.

    Raises QEMUMissing, and QEMUUnsupported if KVM is demanded and does not run a guest.
    """
    if qemu.accel == "tcg":
        return "tcg", "the configuration says so"
    capabilities = await probe(qemu.binary, qemu.arguments, cache)
    kernel = qemu.probe_kernel.absolute() if qemu.probe_kernel else proof.newest_kernel()
    obstacle = _obstacle(capabilities)
    if obstacle is None and kernel is None:
        if qemu.accel == "kvm":
            return "kvm", "the configuration says so; there is no kernel to prove it with"
        obstacle = f"{proof.BOOT_DIR} has no kernel to prove it with; name one as qemu.probe_kernel"
    if obstacle is None and kernel is not None:
        proven, reason = await _proven(qemu, capabilities, kernel, cache, say)
        if proven:
            return "kvm", reason
        obstacle = reason
    if qemu.accel == "kvm":
        raise QEMUUnsupported(
            host="this host",
            reason=f"KVM is demanded, but {obstacle}",
            fix='Mend KVM, or set accel = "auto" in [qemu] of the configuration',
        )
    return "tcg", f"no KVM: {obstacle}"


def _obstacle(capabilities: Capabilities) -> str | None:
    """Why KVM cannot work here, as far as that is seen without a guest."""
    if not capabilities.kvm:
        return f"{capabilities.binary} is built without KVM"
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"there is no {DEVICE}"
        return f"{DEVICE} does not open: {error.strerror}"
    return None


async def _proven(
    qemu: QEMU,
    capabilities: Capabilities,
    kernel: Path,
    cache: Path | None,
    say: Callable[[str], None],
) -> tuple[bool, str]:
    """Whether a guest ran under KVM, now or earlier in this boot, and a sentence on it."""
    if not os.access(kernel, os.R_OK):
        return False, f"the kernel {kernel} that should prove KVM is not readable"
    key = identity(capabilities.binary, [*qemu.arguments, identity(str(kernel)), process.boot_id()])
    file = cache / "accel.json" if cache else None
    if file is not None and (known := load(file, key)) is not None:
        return bool(known["proven"]), str(known["reason"])
    say(f"trying KVM with a guest that boots {kernel}")
    proven, reason = await proof.boots(capabilities.binary, "kvm", kernel, qemu.arguments)
    if file is not None:
        if not proven:
            reason += f" (remembered until the next boot; to try again, delete {file})"
        await asyncio.to_thread(save, file, key, {"proven": proven, "reason": reason})
    return proven, reason
