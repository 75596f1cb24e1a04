"""Machine types: the configuration version of a VM, and which host knows which. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sterna.model.disk import STRICT

Q35 = "pc-q35-"


def release(machine: str) -> tuple[int, ...]:
    """What orders versions of q35: `pc-q35-10.0` after `pc-q35-7.2`; others before all of them."""
    if not machine.startswith(Q35):
        return ()
    numbers = machine.removeprefix(Q35).split(".")
    return tuple(int(number) if number.isdigit() else -1 for number in numbers)


def newest(machines: Iterable[str]) -> str:
    """The newest of `machines`; empty if there is none."""
    return max(machines, key=release, default="")


def oldest(machines: Iterable[str]) -> str:
    """The oldest of `machines`; empty if there is none."""
    return min(machines, key=release, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeWishes:
    """Body of :upgrade-version."""

    __pydantic_config__ = STRICT

    machine: str = ""  # empty: the newest that this host offers


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What a VM's next configuration version would mean. It cannot be taken back."""

    vm: str
    machine: str  # now
    to: str  # the same: there is nothing newer here
    stays: tuple[str, ...]  # hosts where it can run then
    left_behind: dict[str, str]  # hosts that run it now and could not then: their newest version
    unknown: dict[str, str]  # hosts that do not answer, and why
    memory: tuple[str, ...]  # checkpoints whose memory could not be loaded any more


def left_behind(machine: str, to: str, offers: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Of `offers` (machine types by host) those that run `machine` and not `to`: their newest."""
    return {
        host: newest(machines)
        for host, machines in offers.items()
        if machine in machines and to not in machines
    }
