"""Atomic file writes, safe with concurrent writers and readers.

A file is written under a name that no other writer uses, then renamed over the target. POSIX renames atomically in one
file system, so a reader opens the old content or the new one, and of several writers the last one wins. A fixed
temporary name would not do: two writers of one target would rename or truncate each other's half-written file.
"""

import contextlib
import glob
import os
import uuid
from pathlib import Path

PART = ".part"
"""Suffix of an unfinished file."""

_NAME_LETTERS = 50
"""Letters of the target's name in a temporary name, which stays below 255 bytes even with four-byte letters."""


def write_whole(path: Path, raw: bytes) -> None:
    """Write a file atomically, creating its folder; after a power failure it may be the old file or empty.

    Raises:
        OSError: it cannot be written; the target is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, raw, mode=0o666, durable=False)


def write_private(path: Path, raw: bytes) -> None:
    """Write a file durably that only its owner may read (0600; a missing folder is created with 0700).

    Its directory entry is durable after ``sync_folder``.

    Raises:
        OSError: it cannot be written; the target is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _replace(path, raw, mode=0o600, durable=True)


def write_new(path: Path, raw: bytes, *, mode: int = 0o666, durable: bool = True) -> None:
    """Write a file in place; for names that no reader knows yet.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be written; a part of it may exist.
    """
    # O_EXCL: never write into another writer's file; the mode applies from the first byte.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        f.write(raw)
        if durable:
            f.flush()
            os.fsync(f.fileno())  # before the rename, else a power failure may leave an empty target


def write_if_missing(path: Path, raw: bytes) -> None:
    """Write a file atomically unless it exists; of several writers the first wins. Its folder has to exist.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists():  # its folder may be read-only
        return
    part = temporary(path)
    try:
        write_new(part, raw)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(part, path)  # unlike a rename, a link replaces no file
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: a reader may see a part of the file
                write_new(path, raw)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries (new files, renames, removals) durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary(path: Path) -> Path:
    """Return a unique temporary name beside ``path``."""
    return path.with_name(f".{path.name[:_NAME_LETTERS]}.{uuid.uuid4().hex}{PART}")


def leftovers(path: Path) -> list[Path]:
    """Return unfinished files of ``path``, of killed or active writers."""
    return sorted(path.parent.glob(f".{glob.escape(path.name[:_NAME_LETTERS])}.*{PART}"))


def _replace(path: Path, raw: bytes, *, mode: int, durable: bool) -> None:
    part = temporary(path)
    try:
        write_new(part, raw, mode=mode, durable=durable)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
