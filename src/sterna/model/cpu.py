"""Processors as guests see them: levels, what a host can give, and what several share. Pure.

Features have QEMU's names (`qemu-system-x86_64 -cpu help`). A *level* is one of those that the
x86-64 psABI defines: the same set on every host that can give it. A QEMU model such as `max` or
`host` is whatever that host has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sterna.model.disk import STRICT

FEATURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
AS_THE_HOST = frozenset({"host", "max"})  # models that mean something else on each host
SHARED = "shared"  # what users call the processor that all their hosts can give

_V2 = ("cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3")
# xsaveopt is not in the ABI, but every processor of this level has it, and Linux does not come up
# in an emulated one (QEMU 7.2, 10.0) that has xsave without it.
_V3 = ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave", "xsaveopt")
_V4 = ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
# Over qemu64, a model that every QEMU and processor has. The lowest first.
LEVELS: dict[str, tuple[str, ...]] = {
    "x86-64-v2": _V2,
    "x86-64-v3": (*_V2, *_V3),
    "x86-64-v4": (*_V2, *_V3, *_V4),
}
LOWEST = next(iter(LEVELS))

# What a guest may get over its level where all hosts have it: instructions and protections that
# programs and kernels use. Not in it: what belongs to one maker or to nested guests, what changes
# the size of addresses, and what newer processors dropped.
SHAREABLE = frozenset(
    [
        "3dnowprefetch",
        "adx",
        "aes",
        "arat",
        "avx-vnni",
        "avx512-bf16",
        "avx512-fp16",
        "avx512-vpopcntdq",
        "avx512bitalg",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512f",
        "avx512ifma",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512vl",
        "avx512vnni",
        "clflushopt",
        "clwb",
        "erms",
        "fsgsbase",
        "fsrm",
        "gfni",
        "ibpb",
        "invpcid",
        "md-clear",
        "movdir64b",
        "movdiri",
        "pcid",
        "pclmulqdq",
        "pdpe1gb",
        "pku",
        "rdpid",
        "rdrand",
        "rdseed",
        "rdtscp",
        "serialize",
        "sha-ni",
        "smap",
        "smep",
        "spec-ctrl",
        "ssbd",
        "stibp",
        "umip",
        "vaes",
        "vpclmulqdq",
        "wbnoinvd",
        "x2apic",
        "xgetbv1",
        "xsavec",
        "xsaveopt",
    ]
) | frozenset(LEVELS["x86-64-v4"])

# QEMU sets these after the number of vCPUs, and some versions only as the guest asks.
_OF_TOPOLOGY = frozenset({"cmp-legacy", "ht"})
_WITH_XSAVE = ("avx", "f16c", "fma", "pku", "vaes", "vpclmulqdq", "xgetbv1", "xsave")  # beginnings


@dataclass(frozen=True, slots=True, kw_only=True)
class CPUFacts:
    """What a host's QEMU can give its guests, under the accelerator that they run with.

    Empty `features`: not known; nothing is concluded from that.
    """

    vendor: str = ""  # of the host's processor: GenuineIntel, AuthenticAMD
    name: str = ""  # of it, for people
    features: tuple[str, ...] = ()  # sorted; without the masked ones
    masked: tuple[str, ...] = ()  # that the configuration keeps from guests
    models: tuple[str, ...] = ()  # that QEMU knows
    complete: tuple[str, ...] = ()  # of those, the ones that lack nothing here
    level: str = ""  # the highest that it can give; empty: none, or not known


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestCPU:
    """What a running guest's processor says of itself."""

    vendor: str
    features: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CPUChoice:
    """A level or a model of QEMU, and features over a level."""

    __pydantic_config__ = STRICT

    model: str
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_choice(self.model, self.features)

    @property
    def text(self) -> str:
        """All of it, in one line."""
        return "+".join((self.model, *self.features))

    def __str__(self) -> str:
        extra = f" and {len(self.features)} more features" if self.features else ""
        return self.model + extra


def require_choice(model: str, features: Sequence[str]) -> None:
    """ValueError unless it is one that can be written down for QEMU."""
    if not MODEL.fullmatch(model):
        raise ValueError(f"{model!r} is not the name of a processor model")
    for feature in features:
        if not FEATURE.fullmatch(feature):
            raise ValueError(f"{feature!r} is not the name of a processor's feature")
    if features and model not in LEVELS:
        raise ValueError(f"features are added to a level ({', '.join(LEVELS)}), not to {model}")


def highest(features: Collection[str]) -> str:
    """The highest level of which all is there; empty: not even the lowest."""
    have = set(features)
    return next((name for name in reversed(LEVELS) if have.issuperset(LEVELS[name])), "")


def needs(choice: CPUChoice) -> frozenset[str]:
    """Features that a guest of a level relies on; empty for a model of QEMU."""
    return frozenset(LEVELS.get(choice.model, ())) | frozenset(choice.features)


def lacks(choice: CPUChoice, facts: CPUFacts, accel: Literal["kvm", "tcg"]) -> tuple[str, ...]:
    """What keeps a guest of that choice from being started there: features, or the model itself.

    The emulator starts models of which it lacks something; a processor must have all.
    """
    if not facts.features:
        return ()
    if choice.model in LEVELS:
        return tuple(sorted(needs(choice).difference(facts.features)))
    known = facts.complete if accel == "kvm" else facts.models
    if choice.model == "host":
        return () if accel == "kvm" else ("KVM",)
    return () if choice.model in known or choice.model == "max" else (f"model {choice.model}",)


def lost(guest: GuestCPU, source: CPUFacts, target: CPUFacts) -> tuple[str, ...]:
    """Features that the guest sees and that the target cannot give.

    Those of which even the source does not say that it gives them cannot be judged: QEMU adds
    some to every guest.
    """
    if not target.features or not source.features:
        return ()
    judged = guest.features.intersection((*source.features, *source.masked))
    return tuple(sorted(judged.difference(target.features, _OF_TOPOLOGY)))


def gained(choice: CPUChoice, guest: GuestCPU, target: CPUFacts) -> tuple[str, ...]:
    """What a guest would see in addition on the target: only if its model is the host's own."""
    if choice.model not in AS_THE_HOST:
        return ()
    return tuple(sorted(set(target.features).difference(guest.features, _OF_TOPOLOGY)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The processor that every one of `hosts` can give its guests."""

    hosts: tuple[str, ...]
    level: str  # empty: they do not even share the lowest
    features: tuple[str, ...]  # over the level, sorted
    levels: dict[str, str]  # the highest of each host
    beyond: dict[str, tuple[str, ...]]  # what each could give, and not all the others
    accels: dict[str, str]  # what guests run under on each: a running VM stays with one kind
    vendors: dict[str, str]

    @property
    def choice(self) -> CPUChoice:
        """To be set for a VM. ValueError if they share no level."""
        if not self.level:
            raise ValueError("they share no level")
        return CPUChoice(model=self.level, features=self.features)


def baseline(hosts: Mapping[str, tuple[str, CPUFacts]]) -> Baseline:
    """What `hosts` (accelerator and facts, by name; at least one) share."""
    offers = {name: SHAREABLE.intersection(facts.features) for name, (_, facts) in hosts.items()}
    shared = frozenset.intersection(*offers.values())
    if "xsaveopt" not in shared:
        shared = frozenset(one for one in shared if not one.startswith(_WITH_XSAVE))
    level = highest(shared)
    return Baseline(
        hosts=tuple(hosts),
        level=level,
        features=_sorted(shared.difference(LEVELS.get(level, ()))) if level else (),
        levels={name: highest(facts.features) for name, (_, facts) in hosts.items()},
        beyond={name: _sorted(offer - shared) for name, offer in offers.items()},
        accels={name: accel for name, (accel, _) in hosts.items()},
        vendors={name: facts.vendor for name, (_, facts) in hosts.items()},
    )


def _sorted(features: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(features))
