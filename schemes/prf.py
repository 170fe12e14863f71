"""Key-seeded randomness: a SHAKE-256 stream per purpose.

Every random value of a key comes from here, never from a library's global generator, so that a seed gives the
same key on every device, in every process and under every library version:
``stream = SHAKE-256(seed || 0x00 || label)``.
"""

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Prf:
    """Independent byte streams from one secret seed, one per domain label."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) < 16:
            raise ValueError(f"expected a seed of at least 16 bytes, got {len(seed)}")
        self._seed = seed

    def stream(self, label: str, n_bytes: int) -> bytes:
        """Return the first ``n_bytes`` of the stream of ``label``."""
        return hashlib.shake_256(self._seed + b"\x00" + label.encode()).digest(n_bytes)

    def child(self, label: str) -> "Prf":
        """Return an independent PRF for a sub-purpose."""
        return Prf(self.stream("child/" + label, 32))

    def bits(self, label: str, n: int) -> np.ndarray:
        """Return (n,) uint8 in {0, 1}."""
        raw = np.frombuffer(self.stream(label, (n + 7) // 8), dtype=np.uint8)
        return np.unpackbits(raw)[:n].copy()

    def integers(self, label: str, n: int, high: int) -> np.ndarray:
        """Return (n,) int64, uniform on [0, high), by rejection sampling of 64-bit words."""
        if not 0 < high <= 2**62:
            raise ValueError(f"expected 0 < high <= 2**62, got {high}")
        # Words above the largest multiple of ``high`` would make small remainders more likely.
        limit = (2**64 // high) * high
        taken: list[int] = []
        words = n + 16
        while len(taken) < n:
            raw = np.frombuffer(self.stream(label, 8 * words), dtype="<u8")
            taken = [int(w) % high for w in raw if int(w) < limit][:n]
            words *= 2
        return np.asarray(taken, dtype=np.int64)

    def distinct_integers(self, label: str, n: int, high: int) -> np.ndarray:
        """Return (n,) distinct int64 on [0, high), in drawing order, repeats rejected."""
        if n > high:
            raise ValueError(f"expected n <= high for distinct integers, got n={n}, high={high}")
        draws = 2 * n + 16
        while True:
            found = list(dict.fromkeys(self.integers(label, draws, high).tolist()))
            if len(found) >= n:
                return np.asarray(found[:n], dtype=np.int64)
            draws *= 2

    def uniform(self, label: str, n: int) -> np.ndarray:
        """Return (n,) float64 on [0, 1) with 53 random bits each."""
        raw = np.frombuffer(self.stream(label, 8 * n), dtype="<u8")
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, label: str, shape: Sequence[int]) -> np.ndarray:
        """Return ``shape`` float64, N(0, 1) by Box-Muller on 53-bit uniforms."""
        n = int(np.prod(shape))
        pairs = (n + 1) // 2
        u = self.uniform(label, 2 * pairs)
        radius = np.sqrt(-2.0 * np.log1p(-u[:pairs]))
        angle = 2.0 * np.pi * u[pairs:]
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return both[:n].reshape(tuple(shape))

    def permutation(self, label: str, n: int) -> np.ndarray:
        """Return (n,) int64: a uniform permutation (ranks of 64-bit words; a tie has probability < n^2 / 2^64)."""
        raw = np.frombuffer(self.stream(label, 8 * n), dtype="<u8")
        return np.argsort(raw, kind="stable").astype(np.int64)

    def seed(self, label: str) -> int:
        """Return a non-negative 63-bit integer, for ``torch.Generator.manual_seed``."""
        return int.from_bytes(self.stream(label, 8), "little") >> 1

    def generator(self, label: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a torch generator for things that may depend on the device (batch order, dropout), never for keys."""
        return torch.Generator(device=device).manual_seed(self.seed(label))

    def __repr__(self) -> str:
        return "Prf(<secret>)"


def subseed(seed: int, *path: str | int) -> int:
    """Derive a seed for one purpose; adding a purpose never shifts the others. Non-negative int64."""
    raw = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 1


def derive(root: bytes, domain: str, *parts: str) -> bytes:
    """Return HMAC-SHA256(root, domain || parts): 32 bytes; parts are length-prefixed, so no lists collide."""
    message = b"".join(len(p.encode()).to_bytes(8, "big") + p.encode() for p in (domain, *parts))
    return hmac.new(root, message, hashlib.sha256).digest()


def as_tensor(values: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Convert a float64 array to float32 on ``device``; integers stay int64."""
    if values.dtype == np.float64:
        return torch.from_numpy(values.astype(np.float32)).to(device)
    return torch.from_numpy(values.astype(np.int64)).to(device)
