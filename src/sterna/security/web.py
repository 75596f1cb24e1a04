"""The certificate that an administrator gives for browsers.

It is shown to whoever asks for one of its names (SNI); everybody else, other hosts among them, meets the
host's own, which they know. A file that was replaced is used from the next connection on; one that
cannot be used leaves the one before in use.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from cryptography import x509

from sterna.errors import BadConfig
from sterna.security import served

log = logging.getLogger(__name__)


class Web:
    """PEM files: `certificate`, with those of its issuers, and `key`. Raises BadConfig."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._seen = self._look()
        self._names: frozenset[str] = frozenset()
        try:
            self._context = self._load()
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            reason = f"it and {key} do not serve browsers: {error}"
            raise BadConfig(path=certificate, reason=reason) from error

    def context(self, name: str | None) -> ssl.SSLContext | None:
        """For a connection that asks for the host `name`; None: it is no name of the certificate."""
        now = self._look()
        if now != self._seen:
            self._seen = now
            try:
                self._context = self._load()
            except (OSError, ValueError, x509.ExtensionNotFound) as error:
                log.error("%s stays as it was read before: %s", self._files[0], error)  # noqa: TRY400
        name = (name or "").lower()
        wildcard = f"*.{name.partition('.')[2]}"
        return self._context if {name, wildcard} & self._names else None

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.num_tickets = 0
        made.set_alpn_protocols(["http/1.1"])
        served.load(made, certificate, key)
        found = x509.load_pem_x509_certificates(certificate.read_bytes())[0].extensions
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
        self._names = frozenset(
            one.lower() for one in names.get_values_for_type(x509.DNSName) if one
        )
        if not self._names:
            raise ValueError("the certificate is for no DNS name")
        return made

    def _look(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_state(path) for path in self._files)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
