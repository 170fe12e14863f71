"""Ray actors, one per GPU (or share of one) or CPU slot. The only module that imports ray.

Weights never pass through Ray: an actor reads and writes the store and returns a small dict. Ray restarts and retries
nothing (``max_restarts=0, max_task_retries=0``): a dead actor is replaced here, its task is requeued by the loop.
"""

import contextlib
import importlib
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, TaskCancelledError

from orchestrator.executors.base import Completion, Executor, NoWorkers
from orchestrator.executors.inline import Perform
from orchestrator.perform import Setup, Workbench
from orchestrator.task import Failure, FailureKind, Task

PERFORM = "orchestrator.perform:attempt_task"
_START_S = 120.0


class GpuWorker:
    """Owns one device and its resident data and models; performs what it is given, decides nothing."""

    def __init__(self, setup: Setup, perform: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        module, _, function = perform.partition(":")
        self._perform: Perform = getattr(importlib.import_module(module), function)
        self._bench = Workbench(setup, cancelled=_is_cancelled)

    def hello(self) -> dict[str, Any]:
        """Process id and device, once the worker is able to work."""
        return {"pid": os.getpid(), "device": self._bench.device_name, "node": ray.get_runtime_context().get_node_id()}

    def perform(self, tasks: Sequence[Task]) -> list[tuple[Any, float]]:
        """(outcome, seconds) of each task, in order."""
        out: list[tuple[Any, float]] = []
        for task in tasks:
            started = time.perf_counter()
            out.append((self._perform(self._bench, task), time.perf_counter() - started))
        return out


def _is_cancelled() -> bool:
    return bool(ray.get_runtime_context().is_canceled())


@dataclass
class _Slot:
    actor: Any
    tasks: tuple[Task, ...] = ()
    call: Any = None
    hello: dict[str, Any] = field(default_factory=dict)


class RayExecutor(Executor):
    """A pool of ``GpuWorker`` actors on a local or an existing cluster.

    Args:
        setup: what each worker needs; paths must mean the same on every node.
        workers: number of actors, or None: one per GPU share, or per CPU where there is no GPU.
        gpus_per_worker: GPUs (or a fraction) per actor, or None: 1 if the cluster has GPUs, else 0.
        address: Ray address, or None to start a local cluster bound to loopback.
        perform: "module:function" that computes one task.
    """

    name = "ray"

    def __init__(
        self,
        setup: Setup,
        *,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        address: str | None = None,
        perform: str = PERFORM,
    ) -> None:
        self._setup = setup
        self._wanted = workers
        self._gpus = gpus_per_worker
        self._address = address
        self._perform = perform
        self._slots: dict[str, _Slot] = {}
        self._calls: dict[Any, str] = {}
        self._owns_cluster = False
        self._made = 0

    @property
    def workers(self) -> Sequence[str]:
        return tuple(self._slots)

    def start(self) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled" if self._address is None else "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not ray.is_initialized():
            self._connect()
            self._owns_cluster = True
        gpus, n_workers = self._placement(ray.cluster_resources())
        self._gpus = gpus
        for _ in range(n_workers):
            self._add()
        try:
            for slot in self._slots.values():
                slot.hello = ray.get(slot.actor.hello.remote(), timeout=_START_S)
        except GetTimeoutError:
            raise NoWorkers(
                f"expected {n_workers} workers within {_START_S:.0f} s, got fewer: {self._found()}; "
                "lower --workers or --gpus-per-worker, or free the cluster"
            ) from None

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is not None:
            ray.init(address=self._address, **quiet)
            return
        cpus = max(os.cpu_count() or 1, self._wanted or 1)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)

    def _placement(self, found: dict[str, float]) -> tuple[float, int]:
        """(GPUs per worker, number of workers); refuses what would wait for ever."""
        n_gpus, n_cpus = found.get("GPU", 0.0), found.get("CPU", 0.0)
        gpus = self._gpus if self._gpus is not None else (1.0 if n_gpus else 0.0)
        room = n_cpus / self._cpus if not gpus else min(n_cpus / self._cpus, n_gpus / gpus)
        n_workers = self._wanted if self._wanted is not None else math.floor(room + 1e-9)
        if n_workers < 1 or n_workers > room + 1e-9:
            raise NoWorkers(
                f"expected room for {max(n_workers, 1)} worker(s) with {gpus:g} GPU and {self._cpus} CPU each, "
                f"got {self._found()}; set --workers / --gpus-per-worker, or use --executor inline"
            )
        return gpus, n_workers

    @property
    def _cpus(self) -> int:
        return self._setup.threads

    @staticmethod
    def _found() -> str:
        have = ray.cluster_resources()
        return f"a cluster with {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU"

    def _add(self) -> None:
        """One more actor. Its environment is set inside: Ray's runtime_env would show it in the dashboard."""
        name = f"worker-{self._made}"
        self._made += 1
        threads = str(self._setup.threads)
        hidden = {} if self._gpus else {"CUDA_VISIBLE_DEVICES": ""}
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = (
            ray.remote(GpuWorker)
            .options(**options)
            .remote(self._setup, self._perform, {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **hidden})
        )
        self._slots[name] = _Slot(actor)

    def idle(self) -> Sequence[str]:
        return [name for name, slot in self._slots.items() if slot.call is None]

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        slot = self._slots[worker]
        slot.tasks = tuple(tasks)
        slot.call = slot.actor.perform.remote(slot.tasks)
        self._calls[slot.call] = worker

    def wait(self, timeout: float) -> list[Completion]:
        if not self._calls:
            return []
        calls = list(self._calls)
        first, _ = ray.wait(calls, num_returns=1, timeout=timeout)
        if not first:
            return []
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        return [c for call in ready for c in self._collect(call)]

    def _collect(self, call: Any) -> list[Completion]:
        worker = self._calls.pop(call)
        slot = self._slots[worker]
        tasks, slot.tasks, slot.call = slot.tasks, (), None
        try:
            outcomes = cast("list[tuple[Any, float]]", ray.get(call))
        except TaskCancelledError:
            failure = Failure(FailureKind.CANCELLED, "stopped before it began")
        except (RayActorError, OutOfMemoryError) as error:
            kind = FailureKind.OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else FailureKind.WORKER_DIED
            failure = Failure(kind, _first_line(error))
            self._renew(worker)
        else:
            return [Completion(t.id, worker, o, s) for t, (o, s) in zip(tasks, outcomes, strict=True)]
        return [Completion(t.id, worker, failure, 0.0, alone=len(tasks) == 1) for t in tasks]

    def _renew(self, worker: str) -> None:
        """A new actor in place of a dead one."""
        with contextlib.suppress(RayActorError):
            ray.kill(self._slots[worker].actor, no_restart=True)
        del self._slots[worker]
        self._add()

    def replace(self, worker: str) -> None:
        slot = self._slots[worker]
        ray.kill(slot.actor, no_restart=True)

    def cancel(self, patience_s: float) -> list[Completion]:
        for call in self._calls:
            ray.cancel(call)
        ended: list[Completion] = []
        deadline = time.monotonic() + patience_s
        while self._calls and time.monotonic() < deadline:
            ended += self.wait(max(0.05, deadline - time.monotonic()))
        return ended

    def stop(self) -> None:
        for slot in self._slots.values():
            with contextlib.suppress(RayActorError):
                ray.kill(slot.actor, no_restart=True)
        self._slots.clear()
        self._calls.clear()
        if self._owns_cluster:
            ray.shutdown()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
