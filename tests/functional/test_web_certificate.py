"""What browsers meet, and what hosts meet, on one port."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api_rig import an_api, exchange, hang_up
from operations_rig import in_loop
from sterna.api.listeners import HTTPS
from sterna.config import load
from sterna.errors import BadConfig
from sterna.security import identity
from sterna.security.trust import Trust
from sterna.security.web import Web

pytestmark = pytest.mark.functional


class Authority:
    """A company's own, which signs certificates."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("company", self.key.public_key(), is_ca=True)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(self, name: str, key, *, is_ca: bool):
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "company")]),
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            key, x509.random_serial_number(), now - timedelta(hours=1), now + timedelta(days=1),
        )  # fmt: skip
        made = made.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        if not is_ca:
            names = x509.SubjectAlternativeName([x509.DNSName(name)])
            made = made.add_extension(names, critical=False)
        return made.sign(self.key, hashes.SHA256())

    def give(self, name: str, folder: Path) -> tuple[Path, Path]:
        """Certificate and key for that name, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), is_ca=False)
        files = folder / "web.pem", folder / "web-key.pem"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files


async def meets(port: int, name: str, trusted: str) -> int:
    """The status of a request by somebody who trusts those certificates alone."""
    context = ssl.create_default_context(cadata=trusted)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    try:
        status, _, _ = await exchange((reader, writer), "GET", "/v1")
        return int(status)
    finally:
        await hang_up(writer)


@in_loop
async def test_browsers_meet_a_given_certificate_and_hosts_the_hosts_own(tmp_path):
    company, other = Authority(), Authority()
    own = identity.ensure(tmp_path / "identity", "alpha", "127.0.0.1")
    trust = Trust(tmp_path / "peers", own)
    web = Web(*company.give("vm.example.org", tmp_path))
    async with an_api(tmp_path, HTTPS(address="127.0.0.1", port=0, trust=trust, web=web)) as api:
        assert await meets(api.port, "vm.example.org", company.pem) == 401
        assert await meets(api.port, "VM.example.org", company.pem) == 401
        assert await meets(api.port, "127.0.0.1", own.pem) == 401
        assert await meets(api.port, "alpha", own.pem) == 401
        with pytest.raises(ssl.SSLCertVerificationError):
            await meets(api.port, "alpha", company.pem)
        other.give("*.example.org", tmp_path)  # renewed, by another authority
        assert await meets(api.port, "vm.example.org", other.pem) == 401
        (tmp_path / "web-key.pem").write_text("no key")
        assert await meets(api.port, "vm.example.org", other.pem) == 401


def test_files_that_do_not_serve_are_told_at_the_start(tmp_path):
    certificate, key = Authority().give("vm.example.org", tmp_path)
    key.unlink()
    with pytest.raises(BadConfig, match="do not serve browsers"):
        Web(certificate, key)
    file = tmp_path / "sternad.toml"
    file.write_text('[listen]\naddress = "127.0.0.1"\nweb_key = "/x"\n')
    with pytest.raises(BadConfig, match="go together"):
        load(file)
