"""Who can open the keys of VMs with secrets: each host has a key pair for that, its guardian.

A VM's key is 32 random bytes. It lies in the VM's record only sealed, once for each guardian that may
open it: an ephemeral X25519 key, HKDF-SHA256, ChaCha20-Poly1305, with the VM's id as associated data, so
that the key of one VM is of no use in the record of another.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sterna.host.store import replace_file

KEY = 32  # bytes, of a VM and of X25519
_NONCE = bytes(12)  # each sealing has a key of its own


def new_key() -> bytes:
    """Of a VM."""
    return os.urandom(KEY)


def derive(key: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose, which tell nothing about those for another."""
    return HKDF(hashes.SHA256(), KEY, salt=None, info=f"sterna {purpose}".encode()).derive(key)


def public(text: str) -> X25519PublicKey:
    """A guardian's public key, from base64. Raises ValueError."""
    raw = base64.b64decode(text, validate=True)
    if len(raw) != KEY:
        raise ValueError(f"a guardian's key has {KEY} bytes, not {len(raw)}")
    return X25519PublicKey.from_public_bytes(raw)


def fingerprint(text: str) -> str:
    """What people compare: the beginning of SHA-256 of the public key."""
    return hashlib.sha256(base64.b64decode(text)).hexdigest()[:32]


def seal(key: bytes, guardian: str, vm_id: str) -> str:
    """The VM's `key` for `guardian` (public, base64) alone. Raises ValueError."""
    ephemeral, to = X25519PrivateKey.generate(), public(guardian)
    shared = ephemeral.exchange(to)
    own = ephemeral.public_key().public_bytes_raw()
    box = ChaCha20Poly1305(_box(shared, own, to.public_bytes_raw()))
    return base64.b64encode(own + box.encrypt(_NONCE, key, vm_id.encode())).decode()


def _box(shared: bytes, ephemeral: bytes, to: bytes) -> bytes:
    return derive(shared, f"seal {ephemeral.hex()} {to.hex()}")


class Guardian:
    """This host's own."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes_raw()
        self.public = base64.b64encode(raw).decode()

    @classmethod
    def ensure(cls, folder: Path) -> Guardian:
        """That of the file in `folder`, made at the first call. Raises OSError, ValueError."""
        file = folder / "guardian.key"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            replace_file(file, X25519PrivateKey.generate().private_bytes_raw())
        return cls(X25519PrivateKey.from_private_bytes(file.read_bytes()))

    def open(self, sealed: str, vm_id: str) -> bytes:
        """The VM's key. Raises ValueError: it was sealed for another guardian or VM, or was changed."""
        data = base64.b64decode(sealed, validate=True)
        ephemeral = data[:KEY]
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
            own = self._private.public_key().public_bytes_raw()
            box = ChaCha20Poly1305(_box(shared, ephemeral, own))
            return box.decrypt(_NONCE, data[KEY:], vm_id.encode())
        except InvalidTag as error:
            raise ValueError("it is sealed for somebody else, or was changed") from error
