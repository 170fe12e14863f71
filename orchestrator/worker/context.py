"""One device with the data sets and models that stay on it between tasks."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.keys.derivation import KeyRoot
from wmarena.orchestrator.keys.encryption import PASSPHRASE, workers_passphrase
from wmarena.orchestrator.keys.storage import load_key, save_key
from wmarena.orchestrator.plan.identity import canonical, digest
from wmarena.orchestrator.plan.plugins import build, build_attack, use_workloads
from wmarena.orchestrator.plan.task import Kind, Task, TaskId
from wmarena.orchestrator.store.backends import EncryptedCheckpoints
from wmarena.orchestrator.store.checkpoints import Curves, StoredCheckpoints
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.manifest import CorruptArtifact
from wmarena.orchestrator.store.opening import open_store
from wmarena.orchestrator.worker.allocator import keep_freed_memory
from wmarena.orchestrator.worker.resident import ModelCache
from wmarena.orchestrator.worker.workload import BoundWorkload, WorkloadConfig
from wmarena.schemes.keys import Key, KeyFileError

MODEL = "model.safetensors"
_MOST_WORKLOADS = 2
_MOST_KEYS = 8


@dataclass(frozen=True)
class Setup:
    """Configuration of a worker process; holds no secret, only paths of secrets.

    Attributes:
        store: a folder, or the URL of a shared store.
        keys: folder of keys if not the store's own; every node must see it.
        keys_mark: content of the marker file that the driver sees in that folder (``Store.keys_mark``).
        device: "cpu", "cuda" or "auto".
        threads: CPU threads per task; the same under every executor, since sums depend on it.
        root_file: file of the key root, None for the published one.
        passphrase_file: file of the passphrase that seals keys, None for the environment variable.
        challenge: checks the worker's passphrase (``Passphrase.challenge``); None for plain keys.
        workloads: name -> "module:Class" of the built-in workloads.
        checkpoint_s: least seconds between two checkpoints of one task.
        resident_bytes: limit of the models kept on the device between tasks.
    """

    store: Path | str
    keys: Path | None = None
    keys_mark: str | None = None
    data_root: Path | None = None
    device: str = "auto"
    threads: int = 1
    root_file: Path | None = None
    passphrase_file: Path | None = None
    challenge: bytes | None = None
    workloads: Mapping[str, str] = field(default_factory=dict)
    checkpoint_s: float = 60.0
    resident_bytes: int = 512 * 2**20


class WorkerContext:
    """One device with its data and models."""

    def __init__(self, setup: Setup, cancelled: Callable[[], bool] = lambda: False) -> None:
        if setup.workloads:  # else the workloads that this process has registered
            use_workloads(setup.workloads)
        torch.set_num_threads(setup.threads)
        keep_freed_memory()
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if setup.device == "auto" else setup.device
        self.device = torch.device(kind)
        self.device_name = torch.cuda.get_device_name() if kind == "cuda" else "cpu"
        self.setup = setup
        self.store = _open_store(setup)
        self.root = KeyRoot.from_file(setup.root_file)
        self._passphrase = workers_passphrase(setup.passphrase_file, setup.challenge)
        self.cancelled = cancelled
        self._workloads: dict[str, BoundWorkload] = {}
        self._models = ModelCache(setup.resident_bytes)
        self._keys: dict[TaskId, Key] = {}

    def workload(self, config: Mapping[str, Any]) -> BoundWorkload:
        """Return the workload with its data on the device; the two last used stay resident."""
        name = canonical(dict(config))
        if name not in self._workloads:
            plugin: WorkloadConfig = build("workload", config)  # type: ignore[assignment]
            while len(self._workloads) >= _MOST_WORKLOADS:
                self._workloads.pop(next(iter(self._workloads)))
            self._workloads[name] = plugin.bind(self.device, self.setup.data_root)
        return self._workloads[name]

    def model(self, bound: BoundWorkload, task_id: TaskId) -> nn.Module:
        """Return a stored model in eval mode, kept resident: copy it before changing it."""

        def load() -> nn.Module:
            network = bound.task.network(0)
            network.load_state_dict(self.store.load_tensors(task_id, MODEL))
            return network.eval()

        # Cached by content too: a recomputed task may have another model.
        return self._models.get(f"{task_id}/{self.store.sha256(task_id, MODEL)}", load)

    def checkpoints(self, task: Task, curves: Curves) -> StoredCheckpoints:
        """Return the checkpoints of ``task``, which also hold its training curves."""
        # State of training that uses a key may reveal a part of it.
        secret = task.kind is not Kind.TRAIN
        backend = self.store.checkpoint_backend(trajectory_id(task), secret=secret)
        if secret and self.store.shares_keys and self._passphrase is not None:
            backend = EncryptedCheckpoints(backend, self._passphrase)
        return StoredCheckpoints(backend, every_s=self.setup.checkpoint_s, cancelled=self.cancelled, curves=curves)

    def save_key(self, task_id: TaskId, key: Key) -> None:
        """Save the key that ``task_id`` completed in the store's folder of keys.

        Raises:
            StoreError: it cannot be written.
        """
        self._keys.pop(task_id, None)
        try:
            save_key(key, self.store.key_dir(task_id), self._passphrase)
            self.store.share_key(task_id)
        # KeyFileError: another driver changed the files between writing and sharing; the next attempt writes them anew.
        except (OSError, KeyFileError) as error:
            raise StoreError(f"expected to write the key of {task_id[:12]}, got: {error}") from error

    def load_key(self, task_id: TaskId) -> Key:
        """Load the key that ``task_id`` completed; a few stay in memory, with their expensive derived values.

        Raises:
            CorruptArtifact: the key is missing or damaged; its task has to run again.
            SealError: the key is sealed with another passphrase.
        """
        if task_id not in self._keys:
            self.store.receive_keys([task_id])
            try:
                loaded = load_key(self.store.key_dir(task_id), self._passphrase)
            except KeyFileError as error:
                raise CorruptArtifact(task_id, str(error)) from None
            made = ((self.store.intact_manifest(task_id) or {}).get("result") or {}).get("commitment")
            if made is not None and made != loaded.commitment:
                raise CorruptArtifact(task_id, "its key belongs to another model: two drivers computed the task")
            while len(self._keys) >= _MOST_KEYS:
                self._keys.pop(next(iter(self._keys)))
            self._keys[task_id] = loaded
        return self._keys[task_id]

    def release(self) -> None:
        """Free all resident models, after memory ran out."""
        self._models.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def environment(self) -> dict[str, str]:
        """Return what results may depend on in the last bit; recorded, but not part of identities."""
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "device_kind": self.device.type,
        }


def _open_store(setup: Setup) -> Store:
    """Open the store and check that its folder of keys is the driver's."""
    store = open_store(setup.store, setup.keys)
    if setup.keys is not None and store.keys_mark() != setup.keys_mark:
        raise StoreError(
            f"expected every node to see the driver's folder of keys, got another folder at {setup.keys} on "
            f"{platform.node()}; mount it there, or set {PASSPHRASE} and leave out --keys: keys are then stored sealed"
        )
    return store


def trajectory_id(task: Task) -> str:
    """Return the name of the checkpoint folder: the task's id, or that of all strengths of an incremental attack."""
    if task.kind is not Kind.ATTACK:
        return task.id
    attack = build_attack(task.config["attack"])
    if not attack.incremental:
        return task.id
    identity = task.identity()
    identity["config"] = {**identity["config"], "attack": attack.trajectory()}
    return digest("trajectory", identity)
