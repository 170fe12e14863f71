"""A store behind a URL, shared by several nodes and drivers.

In the shared folder::

    artifacts/<aa>/<task id>/manifest.json, <16 hex digits of SHA-256>-<file>
    checkpoints/<trajectory id>/   reports/<experiment>/<run id>/   set_aside/
    keys/<task id>/<16 hex digits of its commitment>/sealed-key.json

Files of one driver (journal, MLflow's database, the report being written) are in a folder of the user's cache, and so
are downloaded files. Several drivers may run concurrently: they may compute a task twice, but never damage each
other's results.
"""

import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.keys.encryption import PASSPHRASE, Passphrase, SealError
from wmarena.orchestrator.keys.storage import is_sealed, is_whole, packed, unpack
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.backends import CheckpointBackend, FolderCheckpoints
from wmarena.orchestrator.store.cache import FileCache, user_cache
from wmarena.orchestrator.store.local import CHECKPOINTS, Store
from wmarena.orchestrator.store.manifest import MANIFEST
from wmarena.orchestrator.store.remote import Remote, RemoteCheckpoints, RemoteObject
from wmarena.orchestrator.store.shared_artifacts import SharedArtifacts, in_parallel

logger = logging.getLogger(__name__)

KEYS_WAY_OUT = (
    f"set {PASSPHRASE} and they go to the store sealed, or pass --keys DIR (a folder that every node sees) and they "
    "stay there"
)

CACHE_GIB = "WMARENA_CACHE_GIB"
"""Environment variable: limit of the cache of shared stores on this machine, in GiB."""

_CACHE_GIB = 20.0
_GRACE_S = 24 * 3600.0
_CHALLENGE = "keys/passphrase-check"


class SharedStore(SharedArtifacts, Store):
    """Artifacts, checkpoints, reports and sealed keys behind a URL; ``root`` is a local folder of this user."""

    shared = True

    def __init__(self, url: str, keys: Path | None = None) -> None:
        self.remote = Remote(url)
        digest = hashlib.sha256(self.remote.url.encode()).hexdigest()
        super().__init__(user_cache() / "stores" / digest[:16], keys)
        self.shares_keys = keys is None
        self.seen = set()
        self.cache = FileCache(user_cache() / "files", _cache_bytes())

    @property
    def address(self) -> str:
        return self.remote.url

    def open(self) -> Self:
        super().open()
        (self.root / "URL").write_text(f"{self.remote.url}\n", encoding="utf-8")
        self.probe()
        return self

    def probe(self) -> None:
        super().probe()
        probe = f".probe-{uuid.uuid4().hex}"
        self.remote.put(probe, b"x")
        self.remote.drop(probe)

    # Keys, checkpoints, reports

    def share_key(self, task_id: TaskId) -> None:
        """Upload a sealed key under its commitment, so that keys of two drivers for one task are never mixed.

        Raises:
            StoreError: it is not sealed, or the store cannot be written.
        """
        if not self.shares_keys:
            return
        folder = self.key_dir(task_id)
        if not is_sealed(folder):
            raise StoreError(f"expected a sealed key for a shared store, got a plain one in {folder}; {KEYS_WAY_OUT}")
        # One object: two drivers' seals of one key differ, and their files must not be mixed.
        commitment, raw = packed(folder)
        self.remote.put(_key_place(task_id, commitment), raw)

    def receive_keys(self, task_ids: Iterable[TaskId]) -> None:
        """Download the keys of the artifacts of ``task_ids`` that have one."""
        if self.shares_keys:
            list(in_parallel(self._receive_key, list(task_ids)))

    def _receive_key(self, task_id: TaskId) -> None:
        commitment = ((self.intact_manifest(task_id) or {}).get("result") or {}).get("commitment")
        folder = self.key_dir(task_id)
        if not isinstance(commitment, str) or is_whole(folder, commitment):
            return
        raw = self.remote.get(_key_place(task_id, commitment))
        if raw is not None:
            unpack(raw, folder)

    def check_passphrase(self, passphrase: Passphrase | None) -> None:
        if not self.shares_keys:
            return
        if passphrase is None:
            raise SealError(
                f"expected a place for keys beside the shared store {self.address}, got none; {KEYS_WAY_OUT}"
            )
        challenge = self.remote.get(_CHALLENGE)
        if challenge is None:
            self.remote.put(_CHALLENGE, passphrase.challenge())
        elif not passphrase.matches(challenge):
            raise SealError(
                f"expected the passphrase that keys in {self.address} are sealed with, got another; set {PASSPHRASE} "
                "or `keys: {passphrase: FILE}` to the right one"
            )

    def checkpoint_backend(self, trajectory: str, *, secret: bool) -> CheckpointBackend:
        if secret and not self.shares_keys:
            return FolderCheckpoints(self.keys_root / CHECKPOINTS / trajectory)
        return RemoteCheckpoints(self.remote, f"checkpoints/{trajectory}")

    def share_report(self, folder: Path) -> str | None:
        if not folder.is_relative_to(self.root / "reports"):
            return None
        name = folder.relative_to(self.root).as_posix()
        files = [f for f in folder.rglob("*") if f.is_file()]
        try:
            list(in_parallel(lambda f: self.remote.put(f.relative_to(self.root).as_posix(), f.read_bytes()), files))
        except StoreError as error:
            logger.warning("the report is in %s only: %s", folder, error)
            return None
        return self.remote.address(name)

    # Maintenance

    def unfinished(self) -> list[Path]:
        """Return folders without a manifest, left by killed writers."""
        files = self.objects("artifacts", 3)
        return sorted(Path(found[0].name).parent for found in files.values() if not _whole(found))

    def ls(self) -> list[dict[str, Any]]:
        files = {f: found for f, found in self.objects("artifacts", 3).items() if _whole(found)}
        ids = sorted(map(TaskId, files))
        return list(in_parallel(lambda t: self._row(t, sum(s.size for s in files[t])), ids))

    def verify(self) -> dict[str, Any]:
        """Download and check every file, bypassing the cache."""
        ids = self.task_ids()
        checked = list(in_parallel(self.check, ids))
        damaged = [{"task_id": t, "detail": d} for t, (_, d) in zip(ids, checked, strict=True) if d]
        n_files = sum(n for n, _ in checked)
        return {"checked": len(ids), "files": n_files, "damaged": damaged, "unfinished": len(self.unfinished())}

    def gc(self, keep: Iterable[TaskId], *, apply: bool, trajectories: Iterable[str] = ()) -> dict[str, Any]:
        """Collect garbage like a local store, but keep files younger than a day: other drivers may be writing them."""
        kept = set(keep)
        with self.exclusive() if apply else contextlib.nullcontext():
            ids = set(self.task_ids())
            wanted = kept | set(trajectories)
            artifacts = self.objects("artifacts", 3)
            doomed = [found for f, found in artifacts.items() if f not in kept or not _whole(found)]
            # Files that no manifest names are garbage too: of writers that lost a race or were killed.
            doomed += self.orphans(sorted(kept & ids), artifacts)
            doomed += [found for f, found in self.objects("checkpoints", 2).items() if f not in wanted]
            doomed += [found for f, found in self.objects("keys", 2).items() if f not in kept]
            doomed += self.objects("set_aside", 2).values()
            doomed = [found for found in doomed if found and all(time.time() - s.changed > _GRACE_S for s in found)]
            # The manifest first: without it no reader uses the other files.
            names = [sorted((s.name for s in found), key=lambda n: not n.endswith(MANIFEST)) for found in doomed]
            for name in [n for some in names for n in some] if apply else ():
                self.remote.drop(name)
            size = sum(s.size for found in doomed for s in found)
        return {"kept": len(kept & ids), "removed": len(doomed), "bytes": size, "applied": apply}


def _key_place(task_id: TaskId, commitment: str) -> str:
    return f"keys/{task_id}/{commitment[:16]}/sealed-key.json"


def _whole(found: Iterable[RemoteObject]) -> bool:
    return any(s.name.endswith(f"/{MANIFEST}") for s in found)


def _cache_bytes() -> int:
    text = os.environ.get(CACHE_GIB) or str(_CACHE_GIB)
    try:
        n_bytes = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        n_bytes = -1
    if n_bytes < 0:
        raise StoreError(f"expected a number of GiB in {CACHE_GIB}, got {text!r}; set it to 20, or unset it")
    return n_bytes
