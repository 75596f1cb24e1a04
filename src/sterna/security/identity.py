"""Who this host is: its key and certificate.

The key is made at first start, never leaves the host and is readable by root only. The
certificate is its own authority: a peer that holds a copy of it knows that it talks to this host.

A new key is made beside the old one (`prepare`) and takes its place (`switch`); a host that dies
between any two of these steps has one whole identity at its next start (`ensure`).
"""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=730)  # `sterna host rotate` takes a second; checks warn 30 days ahead
_CLOCKS = timedelta(hours=1)  # that hosts' clocks may differ
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
MAX_PEM = 8192  # bytes; ours have 700


@dataclass(frozen=True, slots=True)
class Identity:
    """Paths of this host's PEM files."""

    key: Path
    certificate: Path

    @property
    def pem(self) -> str:
        """The certificate as text, to be given to peers."""
        return self.certificate.read_text()

    @property
    def fingerprint(self) -> str:
        """Of the certificate."""
        return fingerprint(self.pem)

    @property
    def next(self) -> Identity:
        """The one that will take its place; its files may be missing."""
        return Identity(
            key=self.key.with_name("next-key.pem"),
            certificate=self.certificate.with_name("next-certificate.pem"),
        )

    @property
    def is_rotating(self) -> bool:
        """Whether a new one is ready and not yet in use."""
        return self.next.certificate.exists()


def ensure(directory: Path, name: str, address: str) -> Identity:
    """The identity in `directory`, made if it is not there yet; `address` is an IP or empty."""
    identity = Identity(key=directory / "key.pem", certificate=directory / "certificate.pem")
    if not identity.certificate.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(identity, name, address)
    elif not _belong(identity.key, identity.certificate):
        # `switch` was interrupted after its first step: the key is the new one already.
        if _belong(identity.key, identity.next.certificate):
            _rename(identity.next.certificate, identity.certificate)
    elif not _proves_both_ways(identity.pem):
        _make(identity, name, address)  # of a version that knew no pairing: no host trusts it
    return identity


def prepare(identity: Identity, name: str, address: str) -> Identity:
    """The identity that will take the place of this one, made if it is not there yet."""
    if not identity.is_rotating:
        _make(identity.next, name, address)
    return identity.next


def switch(identity: Identity) -> None:
    """Put the prepared identity in the place of this one, durably. May be repeated."""
    if identity.next.key.exists():
        _rename(identity.next.key, identity.key)
    _rename(identity.next.certificate, identity.certificate)


def _make(identity: Identity, name: str, address: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name)]
    if address:
        alternatives.append(x509.IPAddress(ip_address(address)))
    begin = datetime.now(UTC) - _CLOCKS
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(
        identity.key,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        0o600,
    )
    _write(identity.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    """The certificate is written after the key: where there is one, there is the other."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _rename(temporary, path)


def _rename(old: Path, new: Path) -> None:
    old.rename(new)
    fd = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _belong(key: Path, certificate: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError):
        return False
    return True


def _proves_both_ways(pem: str) -> bool:
    try:
        found = x509.load_pem_x509_certificate(pem.encode()).extensions
        uses = found.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound):
        return True  # not one of ours; the listener says what is wrong with it
    return ExtendedKeyUsageOID.CLIENT_AUTH in uses


def fingerprint(pem: str) -> str:
    """SHA-256 of the certificate, 64 hexadecimal digits."""
    return fingerprint_of(der(pem))


def fingerprint_of(certificate: bytes) -> str:
    """The same of a certificate as DER, as TLS shows it."""
    return hashlib.sha256(certificate).hexdigest()


def der(pem: str) -> bytes:
    """The one certificate in `pem`. Raises ValueError if it is not exactly one."""
    text = pem.strip()
    if len(text) > MAX_PEM or not text.startswith(_BEGIN) or not text.endswith(_END):
        raise ValueError("not one certificate in PEM form")
    data = ssl.PEM_cert_to_DER_cert(text)
    x509.load_der_x509_certificate(data)
    return data


def end_of(pem: str) -> datetime:
    """When the certificate ends to be valid. Raises ValueError."""
    return x509.load_der_x509_certificate(der(pem)).not_valid_after_utc


def days_left(pem: str) -> float:
    """Until the certificate ends; negative: it has. Raises ValueError."""
    return (end_of(pem) - datetime.now(UTC)).total_seconds() / 86400
