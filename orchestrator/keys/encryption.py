"""Encryption of keys at rest: AES-256-GCM under a key that scrypt derives from a passphrase.

A sealed file is ``magic || log2 N || r || p || salt (16) || nonce (12) || ciphertext || tag (16)``; everything before
the ciphertext, and the identity of the content, are authenticated. Salt and nonce are fresh for every file, so equal
secrets give unrelated files and no two files share a key.

Each process that needs the passphrase reads it from an environment variable or a file. It has no ``repr`` and refuses
to be pickled, so it cannot get into a message, task or actor argument by accident.
"""

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from wmarena.orchestrator.files.errors import StoreError

PASSPHRASE = "WMARENA_PASSPHRASE"
"""Name of the environment variable."""

_LEAST_BYTES = 8
_MAGIC = b"wmarena sealed 1\n"
_HEAD = struct.Struct(f"<{len(_MAGIC)}sBBB16s12s")
_MOST_MEMORY = 256 * 2**20
_MOST_LANES = 16
_WORD = b"wmarena passphrase check"


class SealError(StoreError):
    """A passphrase is missing, unusable or wrong, or a sealed file is damaged; the message says which."""


@dataclass(frozen=True)
class Cost:
    """Cost of one guess at the passphrase: scrypt's N (as its logarithm), r and p."""

    log2_n: int = 15
    r: int = 8
    p: int = 3

    @property
    def bearable(self) -> bool:
        """True if deriving a key needs no more memory and lanes than allowed; a forged file may demand more."""
        sane = 1 <= self.log2_n < 32 and self.r >= 1 and 1 <= self.p <= _MOST_LANES
        return sane and 128 * self.r << self.log2_n <= _MOST_MEMORY


@dataclass(frozen=True)
class Passphrase:
    """Passphrase that seals keys; never shown, never pickled."""

    secret: bytes = field(repr=False)
    cost: Cost = Cost()

    @classmethod
    def find(cls, path: Path | None = None) -> Self | None:
        """Read from ``path`` if given, else from ``WMARENA_PASSPHRASE``; None if neither: keys stay plain.

        One line break at the end of a file is ignored, so that editors and ``$(cat FILE)`` agree.

        Raises:
            SealError: unreadable, or shorter than 8 bytes; the message does not contain it.
        """
        if path is not None:
            try:
                raw = path.read_bytes()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SealError(
                    f"expected a readable passphrase file, got {path} ({reason}); make one with "
                    "`head -c 24 /dev/urandom | base64 > FILE && chmod 600 FILE`"
                ) from None
            return cls(_long_enough(raw.removesuffix(b"\n").removesuffix(b"\r"), str(path)))
        given = os.environ.get(PASSPHRASE)
        return None if given is None else cls(_long_enough(os.fsencode(given), PASSPHRASE))

    def __reduce__(self) -> NoReturn:
        raise TypeError("expected a passphrase to stay in its process, got an attempt to pickle it")

    def seal(self, raw: bytes, identity: bytes) -> bytes:
        """Encrypt ``raw`` and bind it to ``identity``, without which it cannot be opened."""
        salt, nonce = os.urandom(16), os.urandom(12)
        head = _HEAD.pack(_MAGIC, self.cost.log2_n, self.cost.r, self.cost.p, salt, nonce)
        return head + AESGCM(self._key(salt, self.cost)).encrypt(nonce, raw, head + identity)

    def open(self, sealed: bytes, identity: bytes) -> bytes:
        """Decrypt what ``seal`` encrypted.

        Raises:
            SealError: wrong passphrase, wrong identity, altered bytes, or no sealed file.
        """
        head, body = sealed[: _HEAD.size], sealed[_HEAD.size :]
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise SealError("expected a file sealed by this version, got other bytes; restore it from a backup")
        _, log2_n, r, p, salt, nonce = _HEAD.unpack(head)
        cost = Cost(log2_n, r, p)
        if not cost.bearable:
            raise SealError(
                f"expected scrypt within {_MOST_MEMORY >> 20} MiB, got {cost}; WMArena has not written this file"
            )
        try:
            return AESGCM(self._key(salt, cost)).decrypt(nonce, body, head + identity)
        except InvalidTag:
            raise SealError(
                "expected the passphrase that sealed it, got another (or the file belongs to another key); "
                f"set {PASSPHRASE}, or name its file by `keys: {{passphrase: FILE}}`"
            ) from None

    def challenge(self) -> bytes:
        """Return a sealed text that checks a passphrase; sent to workers instead of the passphrase."""
        return self.seal(b"", _WORD)

    def matches(self, challenge: bytes) -> bool:
        """Return whether ``challenge`` was made with this passphrase."""
        try:
            return self.open(challenge, _WORD) == b""
        except SealError:
            return False

    def _key(self, salt: bytes, cost: Cost) -> bytes:
        return Scrypt(salt=salt, length=32, n=1 << cost.log2_n, r=cost.r, p=cost.p).derive(self.secret)


def workers_passphrase(path: Path | None, challenge: bytes | None) -> Passphrase | None:
    """Return a worker's passphrase; None if the driver has none, so that all processes write keys alike.

    Raises:
        SealError: the driver has one, and this process has none or another.
    """
    if challenge is None:
        return None
    found = Passphrase.find(path)
    if found is None or not found.matches(challenge):
        got = "none" if found is None else "another"
        raise SealError(
            f"expected the driver's passphrase in every worker's process, got {got}; on a cluster that is running "
            f"already set {PASSPHRASE} on its nodes, or name a file that they share by `keys: {{passphrase: FILE}}`"
        )
    return found


def missing_passphrase(what: str) -> SealError:
    """Return the error that ``what`` needs a passphrase and there is none."""
    return SealError(
        f"expected a passphrase for {what}, got none; set {PASSPHRASE}, or name a file that holds it by "
        "`keys: {passphrase: FILE}` in the spec"
    )


def without_passphrase(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process that reads no keys."""
    return {name: value for name, value in environment.items() if name != PASSPHRASE}


def _long_enough(secret: bytes, where: str) -> bytes:
    if len(secret) < _LEAST_BYTES:
        raise SealError(f"expected a passphrase of at least {_LEAST_BYTES} bytes in {where}, got {len(secret)}")
    return secret
