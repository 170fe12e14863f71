"""Content-addressed artifacts in a local folder.

Layout::

    journal.sqlite   artifacts/<aa>/<task id>/   keys/<task id>/ (0700)   checkpoints/<trajectory id>/   set_aside/
    reports/<experiment>/<run id>/   mlflow.db   mlartifacts/

An artifact is written to a temporary sibling and renamed, so a reader sees nothing or the whole. Its ``manifest.json``
is the sidecar: the task's identity, its result, the SHA-256 of every file, the hashes of what it consumed. Files are
checked against it before use; what does not match is set aside and computed again.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from orchestrator.identity import file_digest
from orchestrator.task import TaskId

FORMAT = 1


class StoreError(OSError):
    """The store cannot be used (not writable, no folder, full); the message says why and the way out."""


class StoreBusy(StoreError):
    """Another run holds the store."""


class CorruptArtifact(OSError):
    """A stored file does not match its manifest."""

    def __init__(self, task_id: TaskId, detail: str) -> None:
        self.task_id = task_id
        super().__init__(f"artifact {task_id[:12]} is damaged: {detail}")


class Store:
    """One folder that holds everything a run leaves behind."""

    def __init__(self, root: Path) -> None:
        if "://" in str(root):
            raise StoreError(f"expected a local folder as store, got the URL {root}; pass --store DIR")
        self.root = Path(root).expanduser().absolute()
        self._verified: dict[Path, tuple[int, int]] = {}

    def open(self) -> "Store":
        """Create the folder if missing and prove that it can be written.

        Raises:
            StoreError: it cannot.
        """
        try:
            for part in ("artifacts", "keys", "checkpoints", "reports"):
                (self.root / part).mkdir(parents=True, exist_ok=True)
            (self.root / "keys").chmod(0o700)
            probe = self.root / f".probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"expected a store folder that can be written, got {self.root} ({error.strerror or error}); "
                "choose another with --store DIR or WMARENA_STORE"
            ) from None
        return self

    @property
    def journal_path(self) -> Path:
        """The SQLite system of record."""
        return self.root / "journal.sqlite"

    def folder(self, task_id: TaskId) -> Path:
        """Where a task's artifact is or will be."""
        return self.root / "artifacts" / task_id[:2] / task_id

    def key_dir(self, task_id: TaskId) -> Path:
        """Where the key that a task completed is or will be; never anywhere else."""
        return self.root / "keys" / task_id

    def report_dir(self, experiment: str, run_id: str) -> Path:
        """Where the report of one execution goes; names cannot leave the store."""
        return self.root / "reports" / safe_name(experiment) / safe_name(run_id)

    def has(self, task_id: TaskId) -> bool:
        """True if a committed artifact is there (its content is checked when it is read)."""
        return os.path.exists(self.folder(task_id) / "manifest.json")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store for one run.

        Raises:
            StoreBusy: another process holds it.
        """
        with (self.root / "run.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StoreBusy(
                    f"expected to be the only run on {self.root}, got a store that another run holds; wait for it, "
                    "or use another --store"
                ) from None
            yield

    # Writing

    def commit(
        self, task_id: TaskId, identity: Mapping[str, Any], result: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> dict[str, Any]:
        """Write an artifact whole: files, manifest, rename. Committing twice keeps the first.

        Returns:
            The manifest.

        Raises:
            StoreError: the disk is full or not writable.
        """
        final = self.folder(task_id)
        part = final.with_name(f".{task_id[:16]}.{uuid.uuid4().hex}.part")
        try:
            part.mkdir(parents=True)
            for name, raw in files.items():
                _write(part / name, raw)
            manifest = {
                "format": FORMAT,
                "task_id": task_id,
                "identity": dict(identity),
                "result": dict(result),
                "files": {n: {"sha256": file_digest(part / n), "bytes": len(files[n])} for n in sorted(files)},
            }
            _write(part / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
            self._publish(part, final)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise StoreError(
                f"expected to write artifact {task_id[:12]}, got: {error}; free space in {self.root}"
            ) from error
        return manifest

    def _publish(self, part: Path, final: Path) -> None:
        try:
            part.rename(final)
        except OSError:
            if not (final / "manifest.json").exists():
                raise
            shutil.rmtree(part)
            return
        handle = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    # Reading

    def manifest(self, task_id: TaskId) -> dict[str, Any] | None:
        """The sidecar, or None if there is no artifact.

        Raises:
            CorruptArtifact: it is unreadable or belongs to another task.
        """
        try:
            text = (self.folder(task_id) / "manifest.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptArtifact(task_id, f"manifest.json: {error}") from None
        try:
            manifest: dict[str, Any] = json.loads(text)
            intact = manifest["task_id"] == task_id and manifest["format"] == FORMAT and "result" in manifest
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise CorruptArtifact(task_id, "manifest.json is not the manifest of this task")
        return manifest

    def path(self, task_id: TaskId, name: str) -> Path:
        """A file of an artifact, its hash checked (once per process and file state).

        Raises:
            CorruptArtifact: missing, or other bytes than the manifest says.
        """
        path = self.folder(task_id) / name
        manifest = self.manifest(task_id)
        if manifest is None or name not in manifest["files"]:
            raise CorruptArtifact(task_id, f"{name} is missing")
        try:
            stat = path.stat()
            state = (stat.st_mtime_ns, stat.st_size)
            if self._verified.get(path) != state:
                if file_digest(path) != manifest["files"][name]["sha256"]:
                    raise CorruptArtifact(task_id, f"{name} has other bytes than its manifest says")
                self._verified[path] = state
        except FileNotFoundError:
            raise CorruptArtifact(task_id, f"{name} is missing") from None
        return path

    def load_tensors(self, task_id: TaskId, name: str) -> dict[str, Tensor]:
        """Tensors of one safetensors file of an artifact, checked."""
        try:
            tensors: dict[str, Tensor] = load(self.path(task_id, name).read_bytes())
        except SafetensorError as error:
            raise CorruptArtifact(task_id, f"{name}: {error}") from None
        return tensors

    def set_aside(self, task_id: TaskId) -> None:
        """Move a damaged artifact out of the way; it will be computed again, and can be inspected."""
        target = self.root / "set_aside" / f"{task_id}-{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(exist_ok=True)
        folder = self.folder(task_id)
        self._verified = {p: s for p, s in self._verified.items() if folder not in p.parents}
        if folder.exists():
            folder.rename(target)

    # Housekeeping

    def task_ids(self) -> list[TaskId]:
        """Ids of all committed artifacts, sorted."""
        found = (self.root / "artifacts").glob("??/*/manifest.json")
        return sorted(TaskId(p.parent.name) for p in found if not p.parent.name.startswith("."))

    def ls(self) -> list[dict[str, Any]]:
        """One row per artifact: task_id, kind, workload, scheme, attack, seed, bytes; damaged ones say so."""
        rows: list[dict[str, Any]] = []
        for task_id in self.task_ids():
            size = sum(f.stat().st_size for f in self.folder(task_id).iterdir() if f.is_file())
            row: dict[str, Any] = {"task_id": task_id, "bytes": size}
            try:
                identity = (self.manifest(task_id) or {}).get("identity", {})
                config = identity.get("config", {})
                row |= {"kind": identity.get("kind"), "seed": identity.get("seed")}
                row |= {part: (config.get(part) or {}).get("name") for part in ("workload", "scheme", "attack")}
            except CorruptArtifact as error:
                row |= {"kind": None, "damaged": str(error)}
            row["key"] = str(self.key_dir(task_id)) if self.key_dir(task_id).exists() else None
            rows.append(row)
        return rows

    def verify(self) -> dict[str, Any]:
        """Check every file of every artifact: checked, files, damaged (task_id, detail), unfinished."""
        damaged: list[dict[str, str]] = []
        n_files = 0
        ids = self.task_ids()
        for task_id in ids:
            try:
                for name in (self.manifest(task_id) or {"files": {}})["files"]:
                    n_files += 1
                    self._verified.pop(self.folder(task_id) / name, None)
                    self.path(task_id, name)
            except CorruptArtifact as error:
                damaged.append({"task_id": task_id, "detail": str(error)})
        return {"checked": len(ids), "files": n_files, "damaged": damaged, "unfinished": len(self._parts())}

    def gc(self, keep: Iterable[TaskId], *, apply: bool) -> dict[str, Any]:
        """Remove artifacts and keys outside ``keep`` and leftovers of killed writers; without ``apply`` only count."""
        kept = set(keep)
        doomed = [self.folder(t) for t in self.task_ids() if t not in kept]
        doomed += [p for p in (self.root / "keys").iterdir() if p.name not in kept]
        doomed += self._parts()
        aside = self.root / "set_aside"
        doomed += list(aside.iterdir()) if aside.exists() else []
        size = sum(f.stat().st_size for d in doomed for f in d.rglob("*") if f.is_file())
        if apply:
            for folder in doomed:
                shutil.rmtree(folder)
        return {"kept": len(kept & set(self.task_ids())), "removed": len(doomed), "bytes": size, "applied": apply}

    def _parts(self) -> list[Path]:
        return sorted((self.root / "artifacts").glob("??/.*.part"))


def safe_name(text: str) -> str:
    """``text`` as one path component: letters, digits, '.', '_', '-' stay; it can never leave its folder."""
    cleaned = "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip(".")
    return cleaned[:100] or "unnamed"


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of CPU copies; equal tensors give equal bytes."""
    raw: bytes = save({n: tensors[n].detach().cpu().contiguous() for n in sorted(tensors)})
    return raw


def _write(path: Path, raw: bytes) -> None:
    with path.open("xb") as f:
        f.write(raw)
        f.flush()
        os.fsync(f.fileno())
