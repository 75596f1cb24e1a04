"""Which certificate a server's TLS context shows: what a client's Kerberos ticket is bound to."""

from __future__ import annotations

import ssl
from pathlib import Path
from weakref import WeakKeyDictionary

_SHOWN: WeakKeyDictionary[ssl.SSLContext, bytes] = WeakKeyDictionary()


def load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Let `context` show the first certificate of that file. Raises OSError, ssl.SSLError, ValueError."""
    context.load_cert_chain(certificate, key)
    text = certificate.read_text()
    end = "-----END CERTIFICATE-----"
    _SHOWN[context] = ssl.PEM_cert_to_DER_cert(
        text[text.index("-----BEGIN CERTIFICATE") :].partition(end)[0] + end
    )


def certificate(context: ssl.SSLContext) -> bytes:
    """As DER; empty if nobody has loaded one by `load`."""
    return _SHOWN.get(context, b"")
