"""Commitments, which are published before the model, and digests (specs 0.5).

``Commit(v; r) = SHA-256(len(v) || v || r)``, r = 32 bytes: computationally hiding and binding. A model's digest is a
Merkle root over its sorted tensors.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def commit(value: bytes, opening: bytes) -> str:
    """Return hex commitment to ``value`` under the 32-byte ``opening``."""
    if len(opening) != 32:
        raise ValueError(f"expected an opening of 32 bytes, got {len(opening)}")
    return hashlib.sha256(len(value).to_bytes(8, "big") + value + opening).hexdigest()


def verifies(commitment: str, value: bytes, opening: bytes) -> bool:
    """Return True if (value, opening) opens ``commitment``; compared in constant time."""
    return hmac.compare_digest(commitment, commit(value, opening))


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return raw little-endian bytes of a tensor, any device and dtype."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tensor_digest(name: str, tensor: Tensor) -> bytes:
    """Return SHA-256 over (name, shape, dtype, raw bytes)."""
    head = f"{name}|{tuple(tensor.shape)}|{tensor.dtype}".encode()
    return hashlib.sha256(len(head).to_bytes(8, "big") + head + tensor_bytes(tensor)).digest()


def merkle_root(leaves: Iterable[bytes]) -> str:
    """Return hex Merkle root; leaves and nodes are domain-separated, an odd node is carried up unchanged."""
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    if not level:
        return hashlib.sha256(b"\x02").hexdigest()
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\x01" + p[0] + p[1]).digest() if len(p) == 2 else p[0] for p in pairs]
    return level[0].hex()


def model_digest(state: Mapping[str, Tensor]) -> str:
    """Return Merkle root over the sorted (name, shape, dtype, bytes) of a state dict."""
    return merkle_root(tensor_digest(name, state[name]) for name in sorted(state))
