"""The few commands of TPM 2.0 (Part 3: Commands) that tests give to a guest's TPM, as bytes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

PLAIN, WITH_SESSION = 0x8001, 0x8002
OWNER, NOBODY, PASSWORD = 0x40000001, 0x40000007, 0x40000009
SHA256, NULL = 0x000B, 0x0010
POLICY, TRIAL = 1, 3
PCR = 12  # nobody else extends it
_SELECTION = struct.pack(">IHB", 1, SHA256, 3) + bytes([0, 1 << (PCR - 8), 0])
# A storage key: ECC P-256, AES-128-CFB; made anew from the TPM's seed it is the same key.
_PRIMARY = bytes.fromhex("0023000b00030072000000060080004300100003001000000000")

Ask = Callable[[bytes], bytes]


class Refused(Exception):
    """The TPM's response code."""


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


class TPM:
    """`ask` carries a command to the TPM and its response back."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def _run(self, code: int, handles: bytes, body: bytes, session: int | None = None) -> bytes:
        area = b"" if session is None else struct.pack(">IIHBH", 9, session, 0, 0, 0)
        tag = PLAIN if session is None else WITH_SESSION
        data = handles + area + body
        answer = self._ask(struct.pack(">HII", tag, 10 + len(data), code) + data)
        (result,) = struct.unpack_from(">I", answer, 6)
        if result:
            raise Refused(f"{result:#x}")
        return answer[10:]

    def extend(self, digest: bytes) -> None:
        body = struct.pack(">IH", 1, SHA256) + digest
        self._run(0x182, struct.pack(">I", PCR), body, PASSWORD)

    def read(self) -> bytes:
        """The PCR's value."""
        return self._run(0x17E, b"", _SELECTION)[-32:]

    def primary(self) -> int:
        body = sized(sized(b"") + sized(b"")) + sized(_PRIMARY) + sized(b"") + struct.pack(">I", 0)
        answer = self._run(0x131, struct.pack(">I", OWNER), body, PASSWORD)
        return int(struct.unpack_from(">I", answer)[0])

    def session(self, kind: int) -> int:
        """For which the PCR is as it is now."""
        head = struct.pack(">II", NOBODY, NOBODY)
        body = sized(bytes(16)) + sized(b"") + struct.pack(">BHH", kind, NULL, SHA256)
        (made,) = struct.unpack_from(">I", self._run(0x176, head, body))
        self._run(0x17F, struct.pack(">I", made), sized(b"") + _SELECTION)
        return int(made)

    def seal(self, secret: bytes) -> bytes:
        """What gives `secret` back to `unseal`, as long as the PCR is as it is now."""
        trial = self.session(TRIAL)
        policy = self._run(0x189, struct.pack(">I", trial), b"")[2:]
        self.flush(trial)
        parent = self.primary()
        public = (
            struct.pack(">HHI", 0x0008, SHA256, 0x12) + sized(policy) + struct.pack(">HH", NULL, 0)
        )
        body = sized(sized(b"") + sized(secret)) + sized(public) + sized(b"") + struct.pack(">I", 0)
        answer = self._run(0x153, struct.pack(">I", parent), body, PASSWORD)[4:]
        self.flush(parent)
        (private,) = struct.unpack_from(">H", answer)
        (length,) = struct.unpack_from(">H", answer, 2 + private)
        return answer[: 4 + private + length]

    def unseal(self, sealed: bytes) -> bytes:
        parent = self.primary()
        answer = self._run(0x157, struct.pack(">I", parent), sealed, PASSWORD)
        (loaded,) = struct.unpack_from(">I", answer)
        self.flush(parent)
        session = self.session(POLICY)
        try:
            answer = self._run(0x15E, struct.pack(">I", loaded), b"", session)[4:]
        except Refused:
            self.flush(session)
            raise
        finally:
            self.flush(loaded)
        (length,) = struct.unpack_from(">H", answer)
        return answer[2 : 2 + length]

    def flush(self, handle: int) -> None:
        self._run(0x165, b"", struct.pack(">I", handle))


def extended(before: bytes, digest: bytes) -> bytes:
    """What a PCR is afterwards."""
    return hashlib.sha256(before + digest).digest()
