"""The store of a run's files in one local folder.

Layout::

    journal.sqlite   artifacts/<aa>/<task id>/   keys/<task id>/ (0700)   checkpoints/<trajectory id>/   set_aside/
    reports/<experiment>/<run id>/   mlflow.db   mlartifacts/
"""

import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

from wmarena.orchestrator.files.atomic import write_if_missing, write_new
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.files.locks import hold, join
from wmarena.orchestrator.keys.encryption import Passphrase
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.artifacts import Artifacts, tensors_to_bytes
from wmarena.orchestrator.store.backends import CheckpointBackend, FolderCheckpoints
from wmarena.orchestrator.store.manifest import CorruptArtifact

_ROOM = 2**20
_NAME_BYTES = 100
_MARK = ".wmarena-keys"
CHECKPOINTS = ".checkpoints"
"""Folder beside keys, for checkpoints that hold a part of a key."""


class Store(Artifacts):
    """Artifacts, keys, checkpoints and reports; locked by one run at a time.

    Attributes:
        shared: True if other drivers may write concurrently.
        own_keys: a folder of keys outside the store, or None.
        shares_keys: True if sealed keys are in the shared store too.
    """

    shared = False
    shares_keys = False

    def __init__(self, root: Path | str, keys: Path | None = None) -> None:
        # A Path drops one of a URL's slashes.
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(root)):
            raise StoreError(f"expected a local folder as store, got the URL {root}; pass --store DIR")
        super().__init__(Path(root).expanduser().absolute())
        self.own_keys = None if keys is None else keys.expanduser().absolute()

    @property
    def keys_root(self) -> Path:
        """The folder of all keys."""
        return self.own_keys or self.root / "keys"

    @property
    def address(self) -> str:
        """Address from which ``open_store`` opens this store in any process."""
        return str(self.root)

    def open(self) -> Self:
        """Create the folder if missing and check that it can be written.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            checkpoints = self.root / "checkpoints"
            for folder in (self.root / "artifacts", self.keys_root, checkpoints, self.root / "reports"):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.keys_root, checkpoints):  # checkpoints may hold a part of a key
                folder.chmod(0o700)
            self._write_probe(b"x")
        except OSError as error:
            raise StoreError(
                f"expected a store folder that can be written, got {self.root} ({error.strerror or error}); "
                "choose another with --store DIR or WMARENA_STORE"
            ) from None
        return self

    def probe(self) -> None:
        """Check that the store can be written, with room for a small artifact.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            self._write_probe(bytes(_ROOM))
        except OSError as error:
            raise StoreError(
                f"expected to write {_ROOM >> 10} KiB in {self.root}, got: {error.strerror or error}; "
                "free space, or check its permissions"
            ) from None

    def _write_probe(self, content: bytes) -> None:
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            write_new(probe, content)
        finally:
            probe.unlink(missing_ok=True)

    @property
    def journal_path(self) -> Path:
        """Path of the SQLite journal."""
        return self.root / "journal.sqlite"

    def key_dir(self, task_id: TaskId) -> Path:
        """Return the only folder of the key that a task completes."""
        return self.keys_root / task_id

    def checkpoint_dir(self, trajectory: str) -> Path:
        """Return the folder of a trajectory's checkpoints."""
        return self.root / "checkpoints" / trajectory

    def share_key(self, task_id: TaskId) -> None:
        """Make a key in ``key_dir`` available to other nodes; called after it was written."""

    def receive_keys(self, task_ids: Iterable[TaskId]) -> None:
        """Make keys available in ``key_dir``; called before they are read."""

    def check_passphrase(self, passphrase: Passphrase | None) -> None:
        """Check the passphrase before a run that needs keys.

        Raises:
            SealError: there is no place for keys, or other drivers seal them with another passphrase.
        """

    def keys_mark(self) -> str:
        """Return the random mark in the folder of keys, created if missing: processes with equal marks see one folder.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self.keys_root / _MARK
        try:
            self.keys_root.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_if_missing(path, uuid.uuid4().hex.encode())
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise StoreError(
                f"expected a folder of keys that can be written, got {self.keys_root} ({error.strerror}); "
                "pass another by --keys DIR"
            ) from None

    def checkpoint_backend(self, trajectory: str, *, secret: bool) -> CheckpointBackend:
        """Return the storage of a trajectory's checkpoints.

        Args:
            secret: True if the state holds a part of a key.
        """
        return FolderCheckpoints(self.checkpoint_dir(trajectory))

    def report_dir(self, experiment: str, run_id: str) -> Path:
        """Return the folder of an execution's report; names cannot leave the store."""
        return self.root / "reports" / safe_name(experiment) / safe_name(run_id)

    def share_report(self, folder: Path) -> str | None:
        """Share a written report; return its address for others, None if that is the folder itself."""
        return None

    @contextmanager
    def exclusive(self, run: str = "", waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Lock the store for one run.

        Args:
            run: id of the run, for messages of other processes.
            waiting: called with a message before waiting for the lock; None: do not wait.

        Raises:
            StoreBusy: another run holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with hold(self.root / "run.lock", f"run {run}" if run else "housekeeping", waiting):
            yield

    @contextmanager
    def joined(self, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Lock the store together with other runs of a shared journal.

        Args:
            waiting: as of ``exclusive``.

        Raises:
            StoreBusy: another process holds it exclusively.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with join(self.root / "run.lock", waiting):
            yield

    # Maintenance

    def ls(self) -> list[dict[str, Any]]:
        """List artifacts: task_id, kind, workload, scheme, attack, seed, bytes; damaged ones with a reason."""
        return [self._row(task_id, _size(self.folder(task_id))) for task_id in self.task_ids()]

    def _row(self, task_id: TaskId, n_bytes: int) -> dict[str, Any]:
        row: dict[str, Any] = {"task_id": task_id, "bytes": n_bytes}
        try:
            identity = (self.manifest(task_id) or {}).get("identity", {})
            config = identity.get("config", {})
            row |= {"kind": identity.get("kind"), "seed": identity.get("seed")}
            plugins = {part: config.get(part) for part in ("workload", "scheme", "attack")}
            row |= {part: c.get("name") if isinstance(c, dict) else None for part, c in plugins.items()}
        except CorruptArtifact as error:
            row |= {"kind": None, "damaged": str(error)}
        row["key"] = str(self.key_dir(task_id)) if self.key_dir(task_id).exists() else None
        return row

    def verify(self) -> dict[str, Any]:
        """Check every file of every artifact; return checked, files, damaged (task_id, detail), unfinished."""
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
        return {"checked": len(ids), "files": n_files, "damaged": damaged, "unfinished": len(self.unfinished())}

    def gc(self, keep: Iterable[TaskId], *, apply: bool, trajectories: Iterable[str] = ()) -> dict[str, Any]:
        """Remove artifacts, keys and checkpoints outside ``keep``, unfinished files, and artifacts set aside.

        Args:
            apply: if False, only count.
            trajectories: checkpoint folders to keep besides those named like a task of ``keep``
                (``trajectory_id``); a removed checkpoint costs time, never a result.

        Raises:
            StoreBusy: a run holds the store's lock, whose unfinished artifacts must stay.
        """
        kept = set(keep)
        # Mark and sweep under the lock: otherwise a run could commit an artifact between the two.
        with self.exclusive() if apply else nullcontext():
            ids = self.task_ids()
            doomed = [self.folder(t) for t in ids if t not in kept]
            doomed += _others(self.keys_root, kept)
            doomed += _others(self.root / "checkpoints", kept | set(trajectories))
            doomed += _others(self.root / "set_aside", set())
            doomed += self.unfinished()
            size = sum(_size(d) for d in doomed)
            for folder in doomed if apply else ():
                shutil.rmtree(folder)
        return {"kept": len(kept.intersection(ids)), "removed": len(doomed), "bytes": size, "applied": apply}


def _others(folder: Path, kept: set[TaskId] | set[str]) -> list[Path]:
    return [p for p in subfolders(folder) if p.name not in kept]


def subfolders(folder: Path) -> list[Path]:
    """Return the sub-folders that are not hidden, sorted."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in found if p.is_dir() and not p.name.startswith(".")]


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def safe_name(text: str) -> str:
    """Return ``text`` as one path component: letters, digits, '.', '_', '-' stay; it can never leave its folder."""
    cleaned = "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip(".")
    # File systems limit bytes, and a letter may have four.
    return cleaned.encode()[:_NAME_BYTES].decode(errors="ignore") or "unnamed"


__all__ = ["CorruptArtifact", "Store", "safe_name", "tensors_to_bytes"]
