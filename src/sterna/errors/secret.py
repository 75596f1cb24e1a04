"""VMs with secrets: TPMs, and the guardians that open the VMs' keys."""

from __future__ import annotations

from sterna.errors.family import Conflict, Failed, NotFound, Refused


class GuardianMissing(Refused):
    code = "secret.guardian-missing"
    text = "the guardian of {host} may not open the keys of {vm}"
    hint = (
        "Where {vm} is: sterna --host {host} guardian export | sterna guardian import {host} -; then "
        "sterna guardian authorize {vm} {host}"
    )


class TPMMissing(Refused):
    code = "secret.no-tpm"
    text = "{vm} has a TPM, and {host} has no swtpm"
    hint = "Install it on {host}: apt-get install swtpm"


class TPMFailed(Failed):
    code = "secret.tpm-failed"
    text = "the TPM of {vm} did not start on {host}: {reason}"
    hint = "See the folder STATE/tpm of {host}"


class GuardianNotFound(NotFound):
    code = "secret.no-guardian"
    text = "{host} knows no guardian called {guardian}"
    hint = (
        "Import it: sterna --host {guardian} guardian export | sterna guardian import {guardian} -"
    )


class GuardianExists(Conflict):
    code = "secret.guardian-exists"
    text = "{host} knows another guardian called {guardian}, with the fingerprint {fingerprint}"
    hint = "If that host has been made anew, forget the old one first: sterna guardian forget {guardian}"


class GuardianIsOwn(Conflict):
    code = "secret.guardian-own"
    text = "the guardian of {host} itself opens the keys of {vm}: without it, {vm} could not start here"
    hint = "Move it first; then revoke {host} where it is"


class NoSecrets(Conflict):
    code = "secret.none"
    text = "{vm} has no keys that guardians open: it has no TPM"
    hint = "Make one that has: sterna vm create --tpm"
