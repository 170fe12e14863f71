"""Storage of checkpoints: named files, written atomically."""

from pathlib import Path
from typing import Protocol

from wmarena.orchestrator.files.atomic import PART, write_whole
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.keys.encryption import Passphrase, SealError


class CheckpointBackend(Protocol):
    """Files of one trajectory. Every method raises ``StoreError`` if the storage cannot be used."""

    def names(self) -> list[str]:
        """List the files."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None if it is missing or cannot be decrypted."""

    def write(self, name: str, raw: bytes) -> None:
        """Write a file."""

    def drop(self, name: str) -> None:
        """Remove a file if it exists."""

    def tidy(self) -> None:
        """Remove files of killed writers, and the folder if it is empty."""


class FolderCheckpoints:
    """A folder, created when the first file is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return [p.name for p in self._folder.iterdir()] if self._folder.is_dir() else []

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, raw: bytes) -> None:
        try:
            write_whole(self._folder / name, raw)
        except OSError as error:
            raise StoreError(f"expected to write a checkpoint in {self._folder}, got: {error}; free space") from error

    def drop(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        for part in self._folder.glob(f"*{PART}"):
            part.unlink(missing_ok=True)
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()


class EncryptedCheckpoints:
    """Encrypts the files of another backend: for states that hold a part of a key, in a shared store."""

    def __init__(self, backend: CheckpointBackend, passphrase: Passphrase) -> None:
        self._backend = backend
        self._passphrase = passphrase
        self.names, self.drop, self.tidy = backend.names, backend.drop, backend.tidy

    def read(self, name: str) -> bytes | None:
        raw = self._backend.read(name)
        try:
            return None if raw is None else self._passphrase.open(raw, name.encode())
        except SealError:
            return None

    def write(self, name: str, raw: bytes) -> None:
        self._backend.write(name, self._passphrase.seal(raw, name.encode()))
