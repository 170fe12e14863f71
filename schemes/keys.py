"""Keys: a seed, what was drawn or trained from it, and the commitment that is published before the model.

On disk a key is a directory (0700) of three files (0600): ``key.json`` (public part, commitment),
``secret.safetensors`` (seed and secret tensors) and ``SHA256SUMS``; one altered byte anywhere is refused.
"""

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
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
_FILES = ("key.json", "secret.safetensors")


class KeyFileError(ValueError):
    """A key directory is missing, incomplete or altered; the message says which and what to do."""


@dataclass(frozen=True)
class Key:
    """Secret and public part of one watermark.

    Attributes:
        scheme: name of the scheme.
        seed: 32 secret bytes; all of the key's randomness follows from them.
        public: what may be shown: scheme configuration, workload, information string. JSON values only.
        secret: tensors that embedding added or that are costly to redraw (side networks, triggers).
    """

    scheme: str
    seed: bytes = field(repr=False)
    public: Mapping[str, Json] = field(default_factory=dict)
    secret: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def cached(self, name: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns, made once per key object: expensive things drawn from the key live and die with it.

        Never in a cache of a module: an attack could reach that without having been given the key.
        """
        if name not in self._kept:
            self._kept[name] = make()
        value: T = self._kept[name]
        return value

    @property
    def prf(self) -> Prf:
        """The stream that everything in this key is drawn from."""
        return Prf(self.seed)

    def with_parts(
        self, *, public: Mapping[str, Json] | None = None, secret: Mapping[str, Tensor] | None = None
    ) -> Self:
        """A completed key (trained head, information string); its commitment covers the additions."""
        tensors = {k: v.detach().cpu().clone() for k, v in (secret or {}).items()}
        return replace(self, public={**self.public, **(public or {})}, secret={**self.secret, **tensors})

    def _content(self) -> bytes:
        head = json.dumps({"scheme": self.scheme, "public": dict(self.public)}, sort_keys=True).encode()
        leaves = [self.seed, head] + [tensor_digest(n, self.secret[n]) for n in sorted(self.secret)]
        return bytes.fromhex(merkle_root(leaves))

    @property
    def commitment(self) -> str:
        """Hex hash commitment to the whole key: publish it (with a time stamp) before the model."""
        return commit(self._content(), self.prf.stream("opening", 32))

    def verifies(self, commitment: str) -> bool:
        """True if this key opens a published commitment."""
        return verifies(commitment, self._content(), self.prf.stream("opening", 32))

    def save(self, directory: Path) -> None:
        """Write the key directory (0700, files 0600); an existing one is replaced file by file."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        tensors = {f"tensor.{k}": v.detach().cpu().contiguous() for k, v in self.secret.items()}
        tensors["seed"] = torch.frombuffer(bytearray(self.seed), dtype=torch.uint8)
        public = {
            "format": KEY_FORMAT,
            "scheme": self.scheme,
            "public": dict(self.public),
            "commitment": self.commitment,
        }
        contents = {
            "key.json": (json.dumps(public, indent=1, sort_keys=True) + "\n").encode(),
            "secret.safetensors": save(tensors),
        }
        contents["SHA256SUMS"] = _sums(contents)
        for name, raw in contents.items():
            _write_private(directory / name, raw)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read and check a key directory.

        Raises:
            KeyFileError: a file is missing or any byte differs from what ``save`` wrote.
        """
        contents: dict[str, bytes] = {}
        for name in (*_FILES, "SHA256SUMS"):
            try:
                contents[name] = (directory / name).read_bytes()
            except OSError as error:
                raise KeyFileError(
                    f"expected a key directory with {', '.join(_FILES)} and SHA256SUMS, got {directory} where {name} "
                    f"cannot be read ({error.strerror}); pass the folder that `wmarena store ls` names"
                ) from None
        if contents["SHA256SUMS"] != _sums({n: contents[n] for n in _FILES}):
            raise KeyFileError(
                f"expected the files of {directory} as they were saved, got content that does not match SHA256SUMS: "
                "the key was altered or damaged; restore it from a backup, or re-embed with `wmarena run`"
            )
        return cls._decode(contents, directory)

    @classmethod
    def _decode(cls, contents: Mapping[str, bytes], directory: Path) -> Self:
        try:
            public: dict[str, Any] = json.loads(contents["key.json"])
            tensors = load(contents["secret.safetensors"])
            seed = bytes(tensors.pop("seed").numpy().tobytes())
            secret = {name.removeprefix("tensor."): t for name, t in tensors.items()}
            key = cls(scheme=public["scheme"], seed=seed, public=public["public"], secret=secret)
            if public["format"] != KEY_FORMAT or not key.verifies(public["commitment"]):
                raise KeyFileError(
                    f"expected a key of format {KEY_FORMAT} that opens its own commitment, got {directory}: "
                    "the key was altered, or written by another version"
                )
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            if isinstance(error, KeyFileError):
                raise
            raise KeyFileError(
                f"expected a key directory, got {directory} whose content cannot be read: {error}"
            ) from None
        return key


def _sums(contents: Mapping[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(contents[n]).hexdigest()}  {n}\n" for n in sorted(contents)).encode()


def _write_private(path: Path, raw: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(raw)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)
