"""Processors: what the installed QEMU can give guests of this host, and what a running one sees.

Both are QEMU's own answers (`query-cpu-model-expansion`, properties of the vCPU), never derived
from names of models. The first is cached for this boot of the host: under KVM it depends on the
processor, its microcode and the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sterna.config import QEMU
from sterna.errors import BadSpec, QMPError
from sterna.model import edge
from sterna.model.cpu import CPUFacts, GuestCPU, highest
from sterna.qemu import process
from sterna.qemu.capabilities import asking, identity, load, save
from sterna.qemu.session import Session

log = logging.getLogger(__name__)
CPUINFO = Path("/proc/cpuinfo")
ALL = "max"  # the model that has all that its accelerator can give


async def facts(
    qemu: QEMU, binary: str, accel: Literal["kvm", "tcg"], cache: Path | None = None
) -> CPUFacts:
    """What guests get from `binary` here, without what the configuration masks.

    Raises QEMUMissing. A QEMU that does not answer such questions gives facts without features.
    """
    key = identity(binary, [*qemu.arguments, accel, process.boot_id()])
    digest = hashlib.sha256(binary.encode()).hexdigest()[:16]
    file = cache / f"cpu-{digest}-{accel}.json" if cache else None
    found: CPUFacts | None = None
    if file is not None and (known := load(file, key)) is not None:
        with contextlib.suppress(BadSpec):  # written by another version of Sterna
            found = edge.parse(CPUFacts, known, str(file))
    if found is None:
        async with asking(binary, [*qemu.arguments, "-accel", accel]) as session:
            found = await _answers(session)
        if file is not None:
            await asyncio.to_thread(save, file, key, edge.dump(found))
    vendor, name = parse_cpuinfo(await asyncio.to_thread(CPUINFO.read_text))
    features = tuple(one for one in found.features if one not in qemu.cpu_mask)
    return replace(
        found,
        vendor=vendor,
        name=name,
        features=features,
        masked=tuple(sorted(qemu.cpu_mask)),
        level=highest(features),
    )


def parse_cpuinfo(text: str) -> tuple[str, str]:
    """Vendor and name of the first processor in /proc/cpuinfo (proc(5))."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("vendor_id", ""), fields.get("model name", "")


async def _answers(session: Session) -> CPUFacts:
    models = await session.execute("query-cpu-definitions")
    try:
        props = await _expand(session, ALL)
    except QMPError as error:
        log.warning("what QEMU can give guests of processors is not known: %s", error.message)
        props = {}
    return CPUFacts(
        features=tuple(sorted(name for name, value in props.items() if value is True)),
        models=_names(models),
        complete=_names(one for one in models if not one.get("unavailable-features")),
    )


def _names(models: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted(one["name"] for one in models))


async def _expand(session: Session, model: str) -> dict[str, Any]:
    """All features by name. `static`: without QEMU's own settings and second names."""
    answer = await session.execute(
        "query-cpu-model-expansion", {"type": "static", "model": {"name": model}}
    )
    props: dict[str, Any] = answer["model"]["props"]
    return props


async def seen(session: Session) -> GuestCPU:
    """What the guest of a running QEMU sees, asked of its first vCPU."""
    vcpus = await session.execute("query-cpus-fast")
    path = vcpus[0]["qom-path"]
    known = await _expand(session, "base")

    async def read(name: str) -> Any:
        return await session.execute("qom-get", {"path": path, "property": name})

    has_vmx = await read("vmx")  # else a third of the questions is void
    names = [
        name
        for name, value in known.items()
        if isinstance(value, bool) and (has_vmx or not name.startswith("vmx-"))
    ]
    values = await asyncio.gather(*(read(name) for name in names))
    return GuestCPU(
        vendor=str(await read("vendor")),
        features=frozenset(name for name, value in zip(names, values, strict=True) if value),
    )
