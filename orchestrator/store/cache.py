"""Local cache of a shared store's files: addressed by content, checked, bounded."""

import contextlib
import hashlib
import os
import time
from pathlib import Path

from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.plan.identity import file_digest

_SLACK = 0.1


def user_cache() -> Path:
    """Return this user's cache folder: ``$XDG_CACHE_HOME/wmarena``, else ``~/.cache/wmarena``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "wmarena"


class FileCache:
    """A cache folder that processes may share; a file removed by one is downloaded again by another.

    Args:
        folder: created with the first file.
        most_bytes: above it the least recently used files are removed.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._checked: dict[Path, tuple[int, int]] = {}
        self._unmeasured = most_bytes  # measure the folder at the first file

    def path(self, sha256: str, name: str) -> Path | None:
        """Return the file with this content, hashed once per process and file state; None if it is not cached."""
        path = self._place(sha256, name)
        try:
            stat = path.stat()
            state = (stat.st_mtime_ns, stat.st_size)
            if self._checked.get(path) != state:
                if file_digest(path) != sha256:
                    path.unlink()
                    return None
                self._checked[path] = state
            # Set the access time by hand for LRU: mounts with noatime do not.
            os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))
        except FileNotFoundError:
            return None
        return path

    def read(self, sha256: str, name: str) -> bytes | None:
        """Return the bytes with this hash, checked now; None if they are not cached."""
        path = self._place(sha256, name)
        try:
            raw = path.read_bytes()
            if hashlib.sha256(raw).hexdigest() == sha256:
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                return raw
            path.unlink()
        except OSError:
            pass
        return None

    def keep(self, sha256: str, name: str, raw: bytes) -> Path:
        """Store the bytes of this hash.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = self._place(sha256, name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, raw)
        stat = path.stat()
        self._checked[path] = (stat.st_mtime_ns, stat.st_size)
        self._unmeasured += len(raw)
        if self._unmeasured >= _SLACK * self._most_bytes:
            self._trim(path)
        return path

    def _place(self, sha256: str, name: str) -> Path:
        return self._folder / sha256[:2] / sha256 / name

    def _trim(self, newest: Path) -> None:
        """Remove the least recently used files except ``newest`` until 10 % are free."""
        found = []
        for path in self._folder.glob("??/*/*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_atime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        if total > self._most_bytes:
            for _, size, path in sorted(found):
                if total <= (1 - _SLACK) * self._most_bytes:
                    break
                if path != newest:
                    path.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        path.parent.rmdir()
                    total -= size
        self._unmeasured = 0
