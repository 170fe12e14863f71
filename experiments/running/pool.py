"""Chooses the workers of a plan and the limits of a task, from the caller's options and the spec."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.executors.base import Executor
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.keys.encryption import Passphrase
from wmarena.orchestrator.running.retry import Limits
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.context import Setup


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The caller's choice of workers; None leaves it to the spec.

    Attributes:
        executor: "ray", or "inline" for this process.
        address: Ray address of an existing cluster; None starts a local one.
        workers: their number.
        gpus_per_worker: GPUs, or a share of one, for each worker.
    """

    executor: Literal["ray", "inline"] = "ray"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None


def limits_of(spec: ExperimentSpec, fail_fast: bool = False) -> Limits:
    """Return the limits of a task from the spec."""
    executor = spec.executor
    return Limits(
        task_timeout_s=executor.task_timeout_s,
        max_retries=executor.max_retries,
        fail_fast=fail_fast,
        heartbeat_timeout_s=executor.heartbeat_timeout_s,
        stall_timeout_s=executor.stall_timeout_s,
    )


def make_executor(
    pool: Pool, spec: ExperimentSpec, store: Store, data_root: Path | None, share: float = 1.0
) -> Executor:
    """Make the executor from the caller's choices, else the spec's, else ``share`` of a GPU for each worker."""
    root_file, passphrase_file = (spec.keys.root, spec.keys.passphrase) if spec.keys else (None, None)
    passphrase = Passphrase.find(passphrase_file)
    setup = Setup(
        store=store.address if store.shared else store.root,
        keys=store.own_keys,
        keys_mark=None if store.own_keys is None else store.keys_mark(),
        data_root=data_root,
        root_file=root_file,
        passphrase_file=passphrase_file,
        challenge=None if passphrase is None else passphrase.challenge(),
        workloads=WORKLOADS,
    )
    if pool.executor == "inline":
        return InlineExecutor(setup)
    # Imported here: runs in this process need no Ray.
    from wmarena.orchestrator.executors.ray import RayExecutor

    workers, gpus = spec.executor.workers, spec.executor.gpus_per_worker
    return RayExecutor(
        setup,
        workers=pool.workers if pool.workers is not None or workers == "auto" else workers,
        gpus_per_worker=pool.gpus_per_worker if pool.gpus_per_worker is not None or gpus == "auto" else gpus,
        share=share,
        address=pool.address,
    )
