"""Artifacts of tasks: written atomically, checked when they are read.

An artifact is a folder of files and a ``manifest.json``, written to a temporary sibling and renamed, so a reader sees
all of it or nothing. The manifest holds the task's identity, its result, the SHA-256 of every file, the hashes of its
parents' models, and a digest over all of this. An artifact that does not match is set aside and computed again.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wmarena.orchestrator.files.atomic import PART, sync_folder, temporary, write_new
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan.identity import file_digest
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.manifest import (
    MANIFEST,
    CorruptArtifact,
    decode_manifest,
    encode_manifest,
    make_manifest,
)

Sidecar = dict[str, Any] | CorruptArtifact | None
"""A manifest, the reason why it cannot be trusted, or None if there is none."""


class Artifacts:
    """All artifacts under one root, by task id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders = os.path.join(root, "artifacts")
        self._verified: dict[Path, tuple[int, int]] = {}

    def folder(self, task_id: TaskId) -> Path:
        """Return the folder of a task's artifact."""
        return Path(self._folders, task_id[:2], task_id)

    def has(self, task_id: TaskId) -> bool:
        """Return whether a committed artifact exists (its content is checked when it is read)."""
        return os.path.exists(f"{self._folders}/{task_id[:2]}/{task_id}/{MANIFEST}")

    def having(self, ids: Collection[TaskId]) -> set[TaskId]:
        """Return those of ``ids`` with a committed artifact, without cached answers."""
        return {task_id for task_id in ids if self.has(task_id)}

    def task_ids(self) -> list[TaskId]:
        """Return the ids of all committed artifacts, sorted."""
        found = Path(self._folders).glob(f"??/*/{MANIFEST}")
        return sorted(TaskId(p.parent.name) for p in found if not p.parent.name.startswith("."))

    def unfinished(self) -> list[Path]:
        """Return unfinished artifacts of killed writers."""
        return sorted(Path(self._folders).glob(f"??/.*{PART}"))

    # Writing

    def commit(
        self, task_id: TaskId, identity: Mapping[str, Any], result: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> dict[str, Any]:
        """Write an artifact atomically: files, manifest, rename. A second commit keeps the first artifact.

        Returns:
            The stored manifest, exactly as a reader gets it.

        Raises:
            StoreError: the disk is full or not writable.
            TypeError: identity or result cannot be written as JSON.
            ValueError: a file's name is not a plain name.
        """
        manifest = make_manifest(task_id, identity, result, files)
        final = self.folder(task_id)
        part = temporary(final)
        try:
            part.mkdir(parents=True)
            for name, raw in files.items():
                write_new(part / name, raw)
            write_new(part / MANIFEST, encode_manifest(manifest))
            sync_folder(part)  # content before the rename: after a power failure no name without content
            return self._publish(task_id, part, final) or manifest
        except OSError as error:
            raise StoreError(
                f"expected to write artifact {task_id[:12]}, got: {error}; free space in {self.root}"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _publish(self, task_id: TaskId, part: Path, final: Path) -> dict[str, Any] | None:
        """Rename ``part`` into place, or return the manifest of an existing artifact."""
        try:
            part.rename(final)
        except OSError:
            if not final.exists():
                raise
            # Another driver was first: its artifact may be in use, so the first intact one stays.
            kept = self.intact_manifest(task_id)
            if kept is not None:
                return kept
            self.set_aside(task_id)
            part.rename(final)
        sync_folder(final.parent)
        return None

    def set_aside(self, task_id: TaskId) -> None:
        """Move a damaged artifact to ``set_aside``, where it can be inspected; it will be computed again."""
        folder = self.folder(task_id)
        self._verified = {p: s for p, s in self._verified.items() if folder not in p.parents}
        target = self.root / "set_aside" / f"{task_id}-{uuid.uuid4().hex[:8]}"
        try:
            target.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(target)
        except OSError as error:
            raise StoreError(f"expected to move the damaged {folder} to {target.parent}, got: {error}") from error

    # Reading

    def manifest(self, task_id: TaskId) -> dict[str, Any] | None:
        """Return the manifest, or None if there is no artifact.

        Raises:
            CorruptArtifact: it is unreadable, was altered, or belongs to another task.
        """
        try:
            raw = (self.folder(task_id) / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(task_id, MANIFEST, error) from None
        return decode_manifest(task_id, raw)

    def manifests(self, ids: Collection[TaskId]) -> Iterator[tuple[TaskId, Sidecar]]:
        """Yield the manifest of each of ``ids``, in order: None if there is none, an error if it cannot be trusted."""
        return ((task_id, self._sidecar(task_id)) for task_id in ids)

    def _sidecar(self, task_id: TaskId) -> Sidecar:
        try:
            return self.manifest(task_id)
        except CorruptArtifact as error:
            return error

    def intact_manifest(self, task_id: TaskId) -> dict[str, Any] | None:
        """Return the manifest, or None if there is none that can be trusted."""
        found = self._sidecar(task_id)
        return found if isinstance(found, dict) else None

    def sha256(self, task_id: TaskId, name: str) -> str:
        """Return a file's SHA-256 according to the manifest.

        Raises:
            CorruptArtifact: there is no such file or no manifest.
        """
        manifest = self.manifest(task_id)
        if manifest is None or name not in manifest["files"]:
            raise CorruptArtifact(task_id, f"{name} is missing")
        return str(manifest["files"][name]["sha256"])

    def read(self, task_id: TaskId, name: str) -> bytes:
        """Return the checked bytes of one file.

        Raises:
            CorruptArtifact: it is missing or does not match the manifest.
            StoreError: it cannot be read now.
        """
        expected = self.sha256(task_id, name)
        try:
            raw = (self.folder(task_id) / name).read_bytes()
        except OSError as error:
            raise _unreadable(task_id, name, error) from None
        return checked_bytes(task_id, name, raw, expected)

    def path(self, task_id: TaskId, name: str) -> Path:
        """Return the path of a file, its hash checked once per process and file state.

        Raises:
            CorruptArtifact: it is missing or does not match the manifest.
        """
        path, expected = self.folder(task_id) / name, self.sha256(task_id, name)
        try:
            stat = path.stat()
            # Large models are read by many tasks: hash again only if the file has changed.
            state = (stat.st_mtime_ns, stat.st_size)
            found = expected if self._verified.get(path) == state else file_digest(path)
        except OSError as error:
            raise _unreadable(task_id, name, error) from None
        if found != expected:
            raise CorruptArtifact(task_id, f"{name} does not match its manifest")
        self._verified[path] = state
        return path

    def uri(self, task_id: TaskId, name: str) -> str:
        """Return the URI of a file for other programs; checked like ``path`` unless that needs a download.

        Raises:
            CorruptArtifact: it is missing or does not match the manifest.
        """
        return self.path(task_id, name).as_uri()

    def load_tensors(self, task_id: TaskId, name: str) -> dict[str, Tensor]:
        """Return the tensors of one checked safetensors file."""
        try:
            tensors: dict[str, Tensor] = load(self.read(task_id, name))
        except SafetensorError as error:
            raise CorruptArtifact(task_id, f"{name}: {error}") from None
        return tensors


def checked_bytes(task_id: TaskId, name: str, raw: bytes, sha256: str) -> bytes:
    """Return ``raw``, or raise CorruptArtifact if it has another hash."""
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise CorruptArtifact(task_id, f"{name} does not match its manifest")
    return raw


def _unreadable(task_id: TaskId, name: str, error: OSError) -> OSError:
    """Return CorruptArtifact for a missing or unreadable file, StoreError for causes that may pass."""
    detail = f"{name}: {error.strerror or error}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
        return CorruptArtifact(task_id, detail)
    return StoreError(f"expected to read artifact {task_id[:12]}, got {detail}; check that the store can be read")


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return a safetensors file of CPU copies (tied weights are written twice); equal tensors give equal bytes."""
    raw: bytes = save({n: tensors[n].detach().cpu().contiguous().clone() for n in sorted(tensors)})
    return raw
