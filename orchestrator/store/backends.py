"""Where checkpoints lie: a few named files that appear whole or not at all."""

from pathlib import Path
from typing import Protocol

from wmarena.orchestrator.files.atomic import PART, write_whole
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.keys.encryption import Passphrase, SealError


class CheckpointBackend(Protocol):
    """Files of one trajectory. Every method raises ``StoreError`` where the place cannot be used."""

    def names(self) -> list[str]:
        """What is there."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None if it is gone or cannot be read as what was written."""
        ...

    def write(self, name: str, raw: bytes) -> None:
        """Put a file there."""
        ...

    def drop(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        ...

    def tidy(self) -> None:
        """Remove what killed writers left, and the place itself if it is empty."""
        ...


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
    """Another shelf whose files are encrypted: for states that hold a part of a key, in a place that others read."""

    def __init__(self, shelf: CheckpointBackend, passphrase: Passphrase) -> None:
        self._shelf = shelf
        self._passphrase = passphrase
        self.names, self.drop, self.tidy = shelf.names, shelf.drop, shelf.tidy

    def read(self, name: str) -> bytes | None:
        raw = self._shelf.read(name)
        try:
            return None if raw is None else self._passphrase.open(raw, name.encode())
        except SealError:
            return None

    def write(self, name: str, raw: bytes) -> None:
        self._shelf.write(name, self._passphrase.seal(raw, name.encode()))
