"""Where keys come from: one root secret, HMAC-separated roles.

``key seed = HMAC-SHA256(root, domain || role || parts)``; roles (owner, stranger, adversary) are separate domains, so
no role's seed tells anything of another's. Benchmarks use a published constant as root: anyone can repeat them and
nobody should take their keys for proof of ownership. Real ownership uses a secret file.
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
    """The secret that all keys of an experiment are derived from; only its commitment is ever shown."""

    secret: bytes = field(repr=False)

    @classmethod
    def published(cls) -> Self:
        """The constant for benchmarks: repeatable by anyone, worthless as proof."""
        return cls(PUBLISHED_ROOT)

    @classmethod
    def from_file(cls, path: Path | None) -> Self:
        """Root from a secret file (any content of at least 32 bytes); None gives the published root.

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
        """Hex SHA-256 that stands for the root in identities and records."""
        return hashlib.sha256(b"wmarena root commitment\x00" + self.secret).hexdigest()

    def prf(self, role: Role, *parts: str) -> Prf:
        """The key stream of one role for one purpose."""
        return Prf(derive(self.secret, f"wmarena/{role}", *parts))
