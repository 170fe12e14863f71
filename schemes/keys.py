"""Keys: a secret seed, tensors drawn or trained from it, and the commitment that is published before the model.

A key is stored as three files: ``key.json`` (public part, commitment), ``secret.safetensors`` (seed and secret
tensors) and ``SHA256SUMS``; one altered byte is refused. ``orchestrator/keys/`` reads and writes them.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wmarena.schemes.commitment import commit, merkle_root, tensor_digest, verifies
from wmarena.schemes.params import Json
from wmarena.schemes.prf import Prf

T = TypeVar("T")

KEY_FORMAT = 1
PUBLIC, SECRET, SUMS = "key.json", "secret.safetensors", "SHA256SUMS"
"""Names of a key's files."""


class KeyFileError(ValueError):
    """Files of a key are missing, incomplete or altered; the message says which."""


@dataclass(frozen=True)
class Key:
    """Secret and public part of one watermark.

    Attributes:
        scheme: name of the scheme.
        seed: 32 secret bytes; all of the key's randomness follows from them.
        public: scheme configuration, workload, information string; JSON values that may be published.
        secret: tensors that embedding added or that are costly to redraw (side networks, triggers).
    """

    scheme: str
    seed: bytes = field(repr=False)
    public: Mapping[str, Json] = field(default_factory=dict)
    secret: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    _cache: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def cached(self, name: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` returns, computed once per key object and freed with it.

        Not in a cache of a module, which an attack could read without being granted the key.
        """
        if name not in self._cache:
            self._cache[name] = make()
        value: T = self._cache[name]
        return value

    @property
    def prf(self) -> Prf:
        """The random stream of everything in this key."""
        return Prf(self.seed)

    def with_parts(
        self, *, public: Mapping[str, Json] | None = None, secret: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return a completed key (trained head, information string); its commitment covers the additions."""
        tensors = {k: v.detach().cpu().clone() for k, v in (secret or {}).items()}
        return replace(self, public={**self.public, **(public or {})}, secret={**self.secret, **tensors})

    def _content(self) -> bytes:
        head = json.dumps({"scheme": self.scheme, "public": dict(self.public)}, sort_keys=True).encode()
        leaves = [self.seed, head] + [tensor_digest(n, self.secret[n]) for n in sorted(self.secret)]
        return bytes.fromhex(merkle_root(leaves))

    @property
    def commitment(self) -> str:
        """Hex commitment to the whole key: publish it (with a time stamp) before the model."""
        return commit(self._content(), self.prf.stream("opening", 32))

    def verifies(self, commitment: str) -> bool:
        """Return True if this key opens a published commitment."""
        return verifies(commitment, self._content(), self.prf.stream("opening", 32))

    def to_files(self) -> dict[str, bytes]:
        """Return the files of this key, by name; equal keys give equal bytes."""
        tensors = {f"tensor.{name}": t.detach().cpu().contiguous() for name, t in self.secret.items()}
        tensors["seed"] = torch.frombuffer(bytearray(self.seed), dtype=torch.uint8)
        public = {
            "format": KEY_FORMAT,
            "scheme": self.scheme,
            "public": dict(self.public),
            "commitment": self.commitment,
        }
        files = {PUBLIC: (json.dumps(public, indent=1, sort_keys=True) + "\n").encode(), SECRET: save(tensors)}
        return {**files, SUMS: checksums(files)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Read the key that ``to_files`` wrote; ignore other files.

        Raises KeyFileError: a file is missing, or any byte differs from what ``to_files`` wrote.
        """
        missing = [name for name in (PUBLIC, SECRET, SUMS) if name not in files]
        if missing:
            raise KeyFileError(f"expected {PUBLIC}, {SECRET} and {SUMS} of a key, got no {missing[0]}")
        if files[SUMS] != checksums({name: files[name] for name in (PUBLIC, SECRET)}):
            raise KeyFileError(f"expected the files as they were saved, got content that does not match {SUMS}")
        try:
            key, public = cls._decoded(files)
            intact = public["format"] == KEY_FORMAT and key.verifies(public["commitment"])
        except (
            *(ValueError, KeyError, TypeError, SafetensorError),
            *(ArithmeticError, AttributeError, RecursionError, RuntimeError),
        ) as error:
            raise KeyFileError(
                f"expected the files of a key, got content that cannot be read ({type(error).__name__}: {error!s:.200})"
            ) from None
        if not intact:
            raise KeyFileError(
                f"expected a key of format {KEY_FORMAT} that opens its own commitment, got one that was altered, or "
                "that another version wrote"
            )
        return key

    @classmethod
    def _decoded(cls, files: Mapping[str, bytes]) -> tuple[Self, dict[str, Any]]:
        """Decode the key and its public file; nothing is checked."""
        public: dict[str, Any] = json.loads(files[PUBLIC])
        tensors = load(files[SECRET])
        seed = bytes(tensors.pop("seed").numpy().tobytes())
        secret = {name.removeprefix("tensor."): t for name, t in tensors.items()}
        return cls(scheme=public["scheme"], seed=seed, public=public["public"], secret=secret), public


def checksums(files: Mapping[str, bytes]) -> bytes:
    """Return the content of ``SHA256SUMS`` for ``files``, as ``sha256sum --check`` reads it."""
    return "".join(f"{hashlib.sha256(files[n]).hexdigest()}  {n}\n" for n in sorted(files)).encode()
