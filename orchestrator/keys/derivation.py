"""Derivation of keys from one root secret, with roles separated by HMAC.

``key seed = HMAC-SHA256(root, domain || role || parts)``; roles (owner, stranger, adversary) are separate domains, so
no role's seed reveals another's. Benchmarks use a published constant as root: anyone can repeat them, and their keys
prove no ownership. Real ownership uses a secret file.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from wmarena.schemes.prf import Prf, derive

Role = Literal["owner", "stranger", "adversary"]

PUBLISHED_ROOT = hashlib.sha256(b"wmarena published root for benchmarks, version 1").digest()


@dataclass(frozen=True)
class KeyRoot:
    """Secret from which all keys of an experiment are derived; only its commitment is shown."""

    secret: bytes = field(repr=False)

    @classmethod
    def published(cls) -> Self:
        """Return the constant root for benchmarks: repeatable by anyone, no proof of ownership."""
        return cls(PUBLISHED_ROOT)

    @classmethod
    def from_file(cls, path: Path | None) -> Self:
        """Read a secret file (any content of at least 32 bytes); None gives the published root.

        Raises:
            ValueError: unreadable or too short.
        """
        if path is None:
            return cls.published()
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise ValueError(
                f"expected a readable key root file, got {path} ({error.strerror}); "
                "make one with `head -c 32 /dev/urandom > FILE && chmod 600 FILE`"
            ) from None
        if len(raw) < 32:
            raise ValueError(f"expected at least 32 secret bytes in {path}, got {len(raw)}")
        return cls(hashlib.sha256(b"wmarena key root\x00" + raw).digest())

    @property
    def simulated(self) -> bool:
        """True for the published root."""
        return self.secret == PUBLISHED_ROOT

    @property
    def commitment(self) -> str:
        """Hex SHA-256 that represents the root in identities and records."""
        return hashlib.sha256(b"wmarena root commitment\x00" + self.secret).hexdigest()

    def prf(self, role: Role, *parts: str) -> Prf:
        """Return the key stream of one role for one purpose."""
        return Prf(derive(self.secret, f"wmarena/{role}", *parts))
