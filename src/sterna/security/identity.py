"""Who this host is: its key and certificate, and the token that hosts share for now.

The key is made at first start, never leaves the host and is readable by root only. The
certificate is its own authority: a peer that holds a copy of it knows that it talks to this host.
"""

from __future__ import annotations

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

from sterna.errors import BadConfig

LIFETIME = timedelta(days=3650)  # pinned by copy, so its end is a formality
MIN_TOKEN = 16  # characters


@dataclass(frozen=True, slots=True)
class Identity:
    """Paths of this host's PEM files."""

    key: Path
    certificate: Path

    @property
    def pem(self) -> str:
        """The certificate as text, to be given to peers."""
        return self.certificate.read_text()


def ensure(directory: Path, name: str, address: str) -> Identity:
    """The identity in `directory`, made if it is not there yet; `address` is an IP or empty."""
    identity = Identity(key=directory / "key.pem", certificate=directory / "certificate.pem")
    if not identity.certificate.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(identity, name, address)
    return identity


def _make(identity: Identity, name: str, address: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name)]
    if address:
        alternatives.append(x509.IPAddress(ip_address(address)))
    begin = datetime.now(UTC) - timedelta(hours=1)  # hosts' clocks differ a little
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
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
    temporary.rename(path)


def peer_context(certificate: Path) -> ssl.SSLContext:
    """TLS 1.3 to exactly the host whose certificate this is."""
    try:
        context = ssl.create_default_context(cafile=str(certificate))
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(path=certificate, reason=f"not a readable certificate: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def end_of(certificate: Path) -> datetime:
    """When it ends to be valid. Raises OSError, ValueError."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def read_token(path: Path) -> str:
    """The token that hosts share. Raises BadConfig if it is missing, short or open to others."""
    try:
        mode = path.stat().st_mode
        token = path.read_text().strip()
    except OSError as error:
        raise BadConfig(
            path=path,
            reason=f"the token shared by hosts cannot be read ({error.strerror}); make one with: "
            f"(umask 077; head -c 32 /dev/urandom | base64 > {path})",
        ) from error
    if mode & 0o077:
        raise BadConfig(path=path, reason="others can read the token; run: chmod 600 on it")
    if len(token) < MIN_TOKEN:
        raise BadConfig(path=path, reason=f"the token is shorter than {MIN_TOKEN} characters")
    return token
