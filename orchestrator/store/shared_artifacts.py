"""Artifacts in a folder behind a URL.

Files are uploaded first and the manifest last: its presence is the commit. A file's name holds the head of its hash,
so writers of the same task never overwrite each other's files, and the last manifest describes a complete artifact.
Readers check every file against the manifest and cache it locally.
"""

import contextlib
import hashlib
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.artifacts import Artifacts, Sidecar, checked_bytes
from wmarena.orchestrator.store.cache import FileCache
from wmarena.orchestrator.store.manifest import (
    MANIFEST,
    CorruptArtifact,
    decode_manifest,
    encode_manifest,
    make_manifest,
)
from wmarena.orchestrator.store.remote import Remote, RemoteObject, is_part

T = TypeVar("T")
R = TypeVar("R")

_REQUESTS = 16
_SINGLE_QUESTIONS = 64
"""Above this number, artifacts are looked up by one listing."""


class SharedArtifacts(Artifacts):
    """Artifacts in a shared folder; a mix-in for ``Store``.

    Attributes:
        remote, cache, seen: set by the subclass: the shared folder, this machine's cache, and artifacts known to exist.
    """

    remote: Remote
    cache: FileCache
    seen: set[TaskId]
    _asked = 0

    def has(self, task_id: TaskId) -> bool:
        """Return whether a committed artifact exists, or did when this process last looked."""
        if task_id not in self.seen:
            self._asked += 1
            if self._asked % _SINGLE_QUESTIONS == 0:
                self.task_ids()
            elif self.remote.has(_object(task_id, MANIFEST)):
                self.seen.add(task_id)
        return task_id in self.seen

    def having(self, ids: Collection[TaskId]) -> set[TaskId]:
        if len(ids) > _SINGLE_QUESTIONS:
            return set(ids).intersection(self.task_ids())
        found = in_parallel(lambda task_id: self.remote.has(_object(task_id, MANIFEST)), ids)
        there = {task_id for task_id, yes in zip(ids, found, strict=True) if yes}
        self.seen = (self.seen - set(ids)) | there
        return there

    def task_ids(self) -> list[TaskId]:
        names = (s.name.split("/") for s in self.remote.listing("artifacts"))
        self.seen = {TaskId(parts[2]) for parts in names if len(parts) == 4 and parts[3] == MANIFEST}
        return sorted(self.seen)

    def manifest(self, task_id: TaskId) -> dict[str, Any] | None:
        raw = self.remote.get(_object(task_id, MANIFEST))
        if raw is None:
            self.seen.discard(task_id)
            return None
        return decode_manifest(task_id, raw)

    def manifests(self, ids: Collection[TaskId]) -> Iterator[tuple[TaskId, Sidecar]]:
        return zip(ids, in_parallel(self._sidecar, ids), strict=True)

    def commit(
        self, task_id: TaskId, identity: Mapping[str, Any], result: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> dict[str, Any]:
        """Upload an artifact: files, then the manifest. A second commit keeps the first artifact."""
        manifest = make_manifest(task_id, identity, result, files)
        # Object stores rename nothing atomically: the manifest, uploaded last, is the commit.
        kept = self.intact_manifest(task_id)
        if kept is None:
            for name, raw in files.items():
                sha256 = manifest["files"][name]["sha256"]
                self.remote.put(_object(task_id, _versioned(name, sha256)), raw)
                with contextlib.suppress(OSError):  # a full disk only costs a download later
                    self.cache.keep(sha256, name, raw)
            self.remote.put(_object(task_id, MANIFEST), encode_manifest(manifest))
            kept = self.intact_manifest(task_id)  # another driver's manifest may be the last
        self.seen.add(task_id)
        return kept or manifest

    def set_aside(self, task_id: TaskId) -> None:
        """Move a damaged artifact's manifest and damaged files away; intact files stay for the next writer."""
        self.seen.discard(task_id)
        target = f"set_aside/{task_id}-{uuid.uuid4().hex[:8]}"
        folder = _object(task_id, "")
        self.remote.move(f"{folder}{MANIFEST}", f"{target}/{MANIFEST}")
        for stored in self.remote.listing(folder.rstrip("/")):
            name = stored.name.removeprefix(folder)
            raw = self.remote.get(stored.name) if name != MANIFEST and not is_part(name) else None
            if raw is not None and not name.startswith(hashlib.sha256(raw).hexdigest()[:16]):
                self.remote.move(stored.name, f"{target}/{name}")

    def read(self, task_id: TaskId, name: str) -> bytes:
        sha256 = self.sha256(task_id, name)
        raw = self.cache.read(sha256, name)
        if raw is None:
            raw = self._download(task_id, name, sha256)
            with contextlib.suppress(OSError):
                self.cache.keep(sha256, name, raw)
        return raw

    def path(self, task_id: TaskId, name: str) -> Path:
        sha256 = self.sha256(task_id, name)
        try:
            return self.cache.path(sha256, name) or self.cache.keep(sha256, name, self._download(task_id, name, sha256))
        except CorruptArtifact:
            raise
        except OSError as error:
            raise StoreError(
                f"expected room for {name} of {task_id[:12]} in the cache of this machine, got: {error}"
            ) from error

    def uri(self, task_id: TaskId, name: str) -> str:
        return self.remote.address(_object(task_id, _versioned(name, self.sha256(task_id, name))))

    def check(self, task_id: TaskId) -> tuple[int, str]:
        """Download and check all files, bypassing the cache; return (number of files, first error or "")."""
        n_files = 0
        try:
            for name, entry in ((self.manifest(task_id) or {}).get("files") or {}).items():
                n_files += 1
                self._download(task_id, name, entry["sha256"])
        except CorruptArtifact as error:
            return n_files, str(error)
        return n_files, ""

    def objects(self, prefix: str, depth: int) -> dict[str, list[RemoteObject]]:
        """Group the objects below ``prefix`` by the name of their folder at ``depth``."""
        found: dict[str, list[RemoteObject]] = defaultdict(list)
        for stored in self.remote.listing(prefix):
            parts = stored.name.split("/")
            if len(parts) > depth:
                found[parts[depth - 1]].append(stored)
        return found

    def orphans(
        self, task_ids: Collection[TaskId], objects: Mapping[str, list[RemoteObject]]
    ) -> Iterator[list[RemoteObject]]:
        """Yield per artifact the objects that its manifest does not name: of killed or second writers."""
        for task_id, manifest in self.manifests(task_ids):
            if isinstance(manifest, dict):
                files = manifest["files"].items()
                named = {MANIFEST, *(_versioned(name, entry["sha256"]) for name, entry in files)}
                yield [s for s in objects[task_id] if s.name.rpartition("/")[2] not in named]

    def _download(self, task_id: TaskId, name: str, sha256: str) -> bytes:
        raw = self.remote.get(_object(task_id, _versioned(name, sha256)))
        if raw is None:
            raise CorruptArtifact(task_id, f"{name} is missing")
        return checked_bytes(task_id, name, raw, sha256)


def in_parallel(do: Callable[[T], R], items: Collection[T]) -> Iterator[R]:
    """Call ``do`` for every item in threads and yield the results in order; the calls wait for the network."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(do, items)


def _object(task_id: TaskId, name: str) -> str:
    return f"artifacts/{task_id[:2]}/{task_id}/{name}"


def _versioned(name: str, sha256: str) -> str:
    return f"{sha256[:16]}-{name}"
