"""Trust between the two hosts: the certificates by which they know each other.

A host that cannot be trusted is not asked anything: these failures end the look, and are the only
finding then.
"""

from __future__ import annotations

from collections.abc import Iterator

from sterna.checks.facts import Question
from sterna.checks.registry import WARNING, Finding, check, failure

SOON_DAYS = 30.0  # time enough to renew them in a maintenance window

failure(
    "trust.certificate-expired",
    "The target's certificate is valid now",
    ("certificate has expired", "certificate is not yet valid"),
    "Set the clocks right if they are not (timedatectl); else pair them again: sterna host distrust "
    "{peer}, then on {peer} sterna host distrust of this one, and sterna host invite",
)
failure(
    "trust.certificate-other",
    "The target shows the certificate that is known of it",
    ("self-signed certificate", "unable to get local issuer", "certificate verify failed: EE"),
    "If {peer} was made anew, pair them again: sterna host distrust {peer}, and sterna host join "
    "with what sterna host invite prints there; if not, somebody else answers at {url}",
)
failure(
    "trust.not-mutual",
    "The target trusts the source",
    ("does not trust this host", "its certificate is not known"),
    "Pair them again: sterna host invite here, and sterna host join on {peer}",
)


@check("trust.certificate-ends", WARNING, "No certificate of the two hosts ends within 30 days")
def certificate_ends(q: Question) -> Iterator[Finding]:
    for one in q.certificates:
        if one.days_left < SOON_DAYS:
            yield Finding(
                f"the certificate of {one.host} ends in {max(0.0, one.days_left):.0f} days; no "
                f"host talks to it after that",
                f"Give {one.host} a new one, there",
                "sterna host rotate",
            )
