"""A folder behind a URL, accessed through ``pyarrow.fs`` (S3, GCS, HDFS, mounted folders).

Objects are written atomically: an object store publishes an upload when it is complete; elsewhere a temporary sibling
is renamed. Credentials come from the environment (``AWS_ACCESS_KEY_ID``, profiles, instance roles), never from the
URL, which is visible in command lines, messages and records.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType

from wmarena.orchestrator.files.addresses import has_credentials
from wmarena.orchestrator.files.atomic import PART
from wmarena.orchestrator.files.errors import StoreError, first_line

_PUBLISH_WHOLE = ("s3", "gcs", "abfs")
"""File systems where unfinished uploads are invisible."""


@dataclass(frozen=True)
class RemoteObject:
    """An object: name below the folder, bytes, Unix seconds of its last change."""

    name: str
    size: int
    changed: float


class Remote:
    """A folder at ``url``.

    Raises:
        StoreError: the URL holds credentials, or is invalid.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if has_credentials(url):
            raise StoreError(
                f"expected a store without credentials in its URL, got some for {parts.scheme}://"
                f"{parts.netloc.rpartition('@')[2]}{parts.path}; give them by the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, a role)"
            )
        query = sorted(parse_qsl(parts.query, keep_blank_values=True))
        self.url = parts._replace(path=parts.path.rstrip("/"), query=urlencode(query), fragment="").geturl()

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """(file system, path of the folder); made at the first use, because it may need the network."""
        try:
            found, folder = FileSystem.from_uri(self.url)
        except (ArrowException, OSError, ValueError) as error:
            raise StoreError(
                "expected a store's URL as pyarrow knows them (s3://bucket/prefix?endpoint_override=…, gs://, hdfs://, "
                f"file:///), got {self.url} ({first_line(error)})"
            ) from None
        return found, folder.rstrip("/")

    @contextmanager
    def _system(self, what: str) -> Iterator[tuple[Any, str]]:
        """Yield (file system, path of the folder); turn errors inside into StoreError with one line."""
        opened = self._opened
        try:
            yield opened
        except FileNotFoundError:
            raise
        except (ArrowException, OSError) as error:
            raise StoreError(
                f"expected to {what} at the store {self.url}, got: {first_line(error)}; check that it can be reached "
                "and that the environment's credentials may read and write it"
            ) from error

    def address(self, name: str) -> str:
        """Return the URL of one object."""
        parts = urlsplit(self.url)
        return parts._replace(path=f"{parts.path}/{name}").geturl()

    def has(self, name: str) -> bool:
        """Return whether the object exists."""
        with self._system(f"look for {name}") as (system, folder):
            return bool(system.get_file_info(f"{folder}/{name}").type == FileType.File)

    def get(self, name: str) -> bytes | None:
        """Return the bytes of an object, None if it does not exist."""
        try:
            with (
                self._system(f"read {name}") as (system, folder),
                system.open_input_file(f"{folder}/{name}") as stream,
            ):
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def put(self, name: str, raw: bytes) -> None:
        """Write an object atomically; replace an existing one."""
        with self._system(f"write {name}") as (system, folder):
            path = f"{folder}/{name}"
            if system.type_name in _PUBLISH_WHOLE:
                _write(system, path, raw)
                return
            part = f"{path}.{uuid.uuid4().hex}{PART}"
            system.create_dir(path.rpartition("/")[0], recursive=True)
            _write(system, part, raw)
            system.move(part, path)

    def drop(self, name: str) -> None:
        """Remove an object if it exists."""
        try:
            with self._system(f"remove {name}") as (system, folder):
                system.delete_file(f"{folder}/{name}")
        except FileNotFoundError:
            return

    def move(self, name: str, target: str) -> None:
        """Rename an object by copying; the old name is removed last."""
        raw = self.get(name)
        if raw is not None:
            self.put(target, raw)
            self.drop(name)

    def listing(self, prefix: str) -> list[RemoteObject]:
        """List all objects below the folder ``prefix``, sorted by name, including unfinished files."""
        with self._system(f"list {prefix}/") as (system, folder):
            infos = system.get_file_info(FileSelector(f"{folder}/{prefix}", allow_not_found=True, recursive=True))
            files = [i for i in infos if i.type == FileType.File]
            start = len(folder) + 1
            return sorted(
                (RemoteObject(i.path[start:], int(i.size), (i.mtime_ns or 0) / 1e9) for i in files),
                key=lambda s: s.name,
            )


class RemoteCheckpoints:
    """Checkpoints in a shared store."""

    def __init__(self, remote: Remote, folder: str) -> None:
        self._remote = remote
        self._folder = folder

    def names(self) -> list[str]:
        return [s.name.rpartition("/")[2] for s in self._remote.listing(self._folder)]

    def read(self, name: str) -> bytes | None:
        return self._remote.get(f"{self._folder}/{name}")

    def write(self, name: str, raw: bytes) -> None:
        self._remote.put(f"{self._folder}/{name}", raw)

    def drop(self, name: str) -> None:
        self._remote.drop(f"{self._folder}/{name}")

    def tidy(self) -> None:
        for name in self.names():
            if is_part(name):
                self.drop(name)


def is_part(name: str) -> bool:
    """Return whether the name is that of an unfinished file."""
    return name.endswith(PART)


def _write(system: Any, path: str, raw: bytes) -> None:
    with system.open_output_stream(path) as stream:
        stream.write(raw)
