"""The two hosts: can they do this together at all?"""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import BLOCKER, INFO, WARNING, Finding, check, here, there

CLOCK_S = 5.0  # between hosts that are kept in time it is milliseconds


@check("host.same", BLOCKER, "The target is another host than the one where the VM is")
def same(q: Question) -> Iterator[Finding]:
    if q.source.name == q.target.name:
        yield Finding(
            f"{q.spec.name} is on {q.target.name} already",
            "Name another host; see",
            "sterna host list",
        )


@check("host.name", WARNING, "The target calls itself as it is called here")
def name(q: Question) -> Iterator[Finding]:
    if q.wishes.target != q.target.name:
        yield Finding(
            f"{q.wishes.target}, as {q.source.name} knows it, calls itself {q.target.name} now",
            f"Pair them again: sterna host distrust {q.wishes.target}, and a new invitation",
        )


@check("host.api", BLOCKER, "Both hosts speak the same version of the API")
def api(q: Question) -> Iterator[Finding]:
    if q.source.api != q.target.api:
        yield Finding(
            f"{q.source.name} speaks API {q.source.api}, {q.target.name} speaks {q.target.api}",
            "Bring both hosts to the same version of Sterna",
        )


@check("host.version", INFO, "Both hosts run the same version of Sterna")
def version(q: Question) -> Iterator[Finding]:
    if q.source.sterna != q.target.sterna and q.source.api == q.target.api:
        yield Finding(
            f"{q.source.name} runs Sterna {q.source.sterna}, {q.target.name} {q.target.sterna}; "
            f"they understand each other",
            "Bring both to the same one when you can",
        )


@check("host.clock", WARNING, "The clocks of both hosts agree")
def clock(q: Question) -> Iterator[Finding]:
    ahead = q.link.clock_ahead_s
    if abs(ahead) > CLOCK_S:
        yield Finding(
            f"the clock of {q.target.name} is {abs(ahead):.0f} s "
            f"{'ahead of' if ahead > 0 else 'behind'} that of {q.source.name}: times in logs and "
            f"operations do not compare, and certificates may seem to have ended",
            "Let the same time servers keep both; look on each with: timedatectl",
        )


@check("host.outbound", BLOCKER, "The source lets VMs leave")
def outbound(q: Question) -> Iterator[Finding]:
    if not q.source.settings.outbound:
        yield Finding(
            f"{q.source.name} lets no VM leave: its outbound moves are off",
            "Turn them on:",
            here(q, "host set --outbound on"),
        )


@check("host.inbound", BLOCKER, "The target takes VMs")
def inbound(q: Question) -> Iterator[Finding]:
    if not q.target.settings.inbound:
        yield Finding(
            f"{q.target.name} takes no VMs: its inbound moves are off",
            "Turn them on:",
            there(q, "host set --inbound on"),
        )


@check("host.draining", BLOCKER, "The target is not being emptied for maintenance")
def draining(q: Question) -> Iterator[Finding]:
    if q.target.settings.draining:
        yield Finding(
            f"{q.target.name} takes no VMs: it is being emptied (drained)",
            "When its maintenance is over",
            there(q, "host resume"),
        )


@check("host.slots", INFO, "Neither host has as many moves as it takes at a time")
def slots(q: Question) -> Iterator[Finding]:
    kind = "storage" if q.is_off else "live"
    source, target = q.source, q.target
    for host, moving, ask, words in (
        (source, source.moving.away_off if q.is_off else source.moving.away_live, here, "from"),
        (target, target.moving.hither_off if q.is_off else target.moving.hither_live, there, "to"),
    ):
        limit = host.settings.storage_moves if q.is_off else host.settings.live_moves
        if moving >= limit:
            yield Finding(
                f"it would wait for its turn: {moving} of at most {limit} {kind} moves {words} "
                f"{host.name} are under way",
                "Let it wait, or allow more",
                ask(q, f"host set --{kind}-moves {moving + 1}"),
                is_safe=False,
            )


@check("host.encryption", BLOCKER, "The source encrypts what the target wants encrypted")
def encryption(q: Question) -> Iterator[Finding]:
    here_is, there_is = q.source.settings.encryption, q.target.settings.encryption
    if q.is_off or q.wishes.carrier == "compression":  # by TLS, whatever the settings
        return
    if here_is == "off" and there_is == "required":
        yield Finding(
            f"{q.source.name} would send the memory unencrypted (encryption off), and "
            f"{q.target.name} does not take that (encryption required)",
            "Encrypt it, or move it with --carrier compression",
            here(q, "host set --encryption required"),
        )


@check("host.problems", WARNING, "The target reports no problem of its own")
def problems(q: Question) -> Iterator[Finding]:
    for problem in q.target.problems:
        yield Finding(
            f"{q.target.name} says: {problem}",
            "Mend that first; see",
            there(q, "host show"),
        )
