"""Trust between the two hosts: certificates, names and the token.

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
    "Set the clocks right if they are not (timedatectl); else give {peer} a new certificate: move "
    "identity/ of its state folder away, restart sternad, and bring what `sterna host certificate` "
    "prints there to the hosts that know it",
)
failure(
    "trust.certificate-other",
    "The target shows the certificate that is known of it",
    ("self-signed certificate", "unable to get local issuer", "certificate verify failed: EE"),
    "If {peer} was made anew, bring what `sterna host certificate` prints there to the file that "
    "[peers.{peer}] names; if not, somebody else answers at {url}",
)
failure(
    "trust.name",
    "The target's certificate names the address by which it is known",
    ("Hostname mismatch", "IP address mismatch"),
    "Name {peer} in [peers] by an address of its certificate, or give it a new one: move identity/ "
    "of its state folder away, and restart sternad",
)
failure(
    "trust.token",
    "The target takes the token of the source",
    ("its token is not this host's", "it carries no token"),
    "Bring the token file of one host to the other, and restart sternad there",
)


@check("trust.certificate-ends", WARNING, "No certificate of the two hosts ends within 30 days")
def certificate_ends(q: Question) -> Iterator[Finding]:
    for one in q.certificates:
        if one.days_left < SOON_DAYS:
            yield Finding(
                f"the certificate of {one.host} ends in {max(0.0, one.days_left):.0f} days; no "
                f"host talks to it after that",
                f"Give it a new one: on {one.host} move identity/ of the state folder away, restart "
                f"sternad, and bring what `sterna host certificate` prints there to its peers",
            )
