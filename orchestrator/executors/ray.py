"""Ray actors, one per GPU (or share of one) or CPU slot. The only module that imports ray.

Weights never pass through Ray: an actor reads and writes the store and returns a small dict. Ray restarts and retries
nothing (``max_restarts=0, max_task_retries=0``): a dead actor is replaced here, its task is requeued by the loop.
"""

import contextlib
import importlib
import logging
import math
import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from orchestrator.executors.base import Completion, Executor, NoWorkers, Vitals
from orchestrator.executors.inline import Perform
from orchestrator.task import Failure, FailureKind, Task
from orchestrator.watch import Pulses
from orchestrator.workbench import Setup, Workbench

PERFORM = "orchestrator.perform:attempt_task"
_FEW = 4
_START_S = 300.0
_PULSE = "pulse"
_PULSE_S = 5.0


class GpuWorker:
    """Owns one device and its resident data and models; performs what it is given, decides nothing."""

    def __init__(self, setup: Setup, perform: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        module, _, function = perform.partition(":")
        self._perform: Perform = getattr(importlib.import_module(module), function)
        self._bench = Workbench(setup, cancelled=self._asked)
        self._progress = time.monotonic()

    def pulse(self) -> float:
        """Seconds since the task under way began, offered a checkpoint or asked whether to stop.

        Answered by a thread of its own, so no answer means that the whole process stands still.
        """
        return time.monotonic() - self._progress

    def _asked(self) -> bool:
        self._progress = time.monotonic()
        return bool(ray.get_runtime_context().is_canceled())

    def hello(self) -> dict[str, Any]:
        """Process id and device, once the worker is able to work."""
        return {"pid": os.getpid(), "device": self._bench.device_name, "node": ray.get_runtime_context().get_node_id()}

    def perform(self, tasks: Sequence[Task]) -> list[tuple[Any, float]]:
        """(outcome, seconds) of each task, in order; after the device is lost, the rest has not been tried."""
        out: list[tuple[Any, float]] = []
        for task in tasks:
            if out and _is_lost(out[-1][0]):
                untried = Failure(FailureKind.CANCELLED, "the device was lost before it began")
                out += [(untried, 0.0)] * (len(tasks) - len(out))
                break
            self._progress = time.monotonic()
            started = time.perf_counter()
            out.append((self._perform(self._bench, task), time.perf_counter() - started))
        return out


def _is_lost(outcome: Any) -> bool:
    """True if the worker's accelerator cannot be used any more."""
    return isinstance(outcome, Failure) and outcome.kind is FailureKind.DEVICE


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
        pulse_s: seconds between two questions for signs of life.
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
        pulse_s: float = _PULSE_S,
    ) -> None:
        # A worker on this machine may have another working directory.
        files = {n: getattr(setup, n) for n in ("store", "data_root", "root_file", "passphrase_file")}
        self._setup = replace(setup, **{n: p.expanduser().absolute() for n, p in files.items() if p is not None})
        self._wanted = workers
        self._gpus = gpus_per_worker
        self._address = address
        self._perform = perform
        self._slots: dict[str, _Slot] = {}
        self._calls: dict[Any, str] = {}
        self._pulses = Pulses(pulse_s, self._ask, _answers, time.monotonic)
        self._owns_cluster = False
        self._guard = contextlib.ExitStack()
        self._made = 0

    @property
    def workers(self) -> Sequence[str]:
        return tuple(self._slots)

    def start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not ray.is_initialized():
            self._connect()
            self._owns_cluster = True
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        self._gpus, n_workers = self._placement(nodes)
        for _ in range(n_workers):
            self._add()
        hellos = [slot.actor.hello.remote() for slot in self._slots.values()]
        try:
            for slot, hello in zip(self._slots.values(), ray.get(hellos, timeout=_START_S), strict=True):
                slot.hello = hello
        except GetTimeoutError:
            raise NoWorkers(
                f"expected {n_workers} workers within {_START_S:.0f} s, got fewer: {self._found()}; "
                "lower --workers or --gpus-per-worker, or free the cluster"
            ) from None
        except RayError as error:
            raise NoWorkers(f"expected workers that start, got: {_last_line(error)}") from None

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is not None:
            try:
                ray.init(address=self._address, **quiet)
            except (ConnectionError, RuntimeError, ValueError, RayError) as error:
                raise NoWorkers(f"expected a Ray cluster at {self._address}, got: {_first_line(error)}") from None
            return
        cpus = max(os.cpu_count() or 1, self._wanted or 1)
        self._guard.enter_context(_guarded())
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)

    def _placement(self, nodes: Sequence[Mapping[str, float]]) -> tuple[float, int]:
        """(GPUs per worker, number of workers) from the nodes' resources; refuses what would wait for ever."""
        some_gpu = any(node.get("GPU", 0.0) for node in nodes)
        gpus = self._gpus if self._gpus is not None else (1.0 if some_gpu else 0.0)
        room = sum(_room(node, self._cpus, gpus) for node in nodes)
        n_workers = self._wanted if self._wanted is not None else room
        if n_workers < 1 or n_workers > room:
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
        worker = ray.remote(**options, concurrency_groups={_PULSE: 1})(GpuWorker)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **hidden}
        actor = worker.remote(self._setup, self._perform, environment)
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
        # A second look costs a tenth of a tiny task: it pays where one answer may stand for many.
        ready = first if len(calls) <= _FEW else ray.wait(calls, num_returns=len(calls), timeout=0)[0]
        return [c for call in ready for c in self._collect(call)]

    def _collect(self, call: Any) -> list[Completion]:
        worker = self._calls.pop(call)
        slot = self._slots[worker]
        tasks, slot.tasks, slot.call = slot.tasks, (), None
        try:
            outcomes = cast("list[tuple[Any, float]]", ray.get(call))
        except TaskCancelledError:
            failure = Failure(FailureKind.CANCELLED, "stopped before it began")
        except RayTaskError as error:
            failure = Failure(FailureKind.ERROR, _last_line(error), str(error))
        except RayError as error:
            failure = Failure(_cause(error), _first_line(error))
            self.replace(worker)
        else:
            if any(_is_lost(outcome) for outcome, _ in outcomes):
                self.replace(worker)
            return [Completion(t.id, worker, o, s) for t, (o, s) in zip(tasks, outcomes, strict=True)]
        return [Completion(t.id, worker, failure, 0.0, alone=len(tasks) == 1) for t in tasks]

    def vitals(self) -> Mapping[str, Vitals]:
        return self._pulses.vitals(self._calls.values())

    def _ask(self, worker: str) -> Any:
        return self._slots[worker].actor.pulse.options(concurrency_group=_PULSE).remote()

    def replace(self, worker: str) -> None:
        slot = self._slots.pop(worker)
        self._calls.pop(slot.call, None)
        with contextlib.suppress(RayError):
            ray.kill(slot.actor, no_restart=True)
        self._add()

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
            with contextlib.suppress(RayError):
                ray.kill(slot.actor, no_restart=True)
        self._slots.clear()
        self._calls.clear()
        if self._owns_cluster:
            ray.shutdown()
            self._owns_cluster = False
        self._guard.close()


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """A cluster begun and ended inside listens on loopback alone, and admits only who has its token.

    Ray takes 127.0.0.1 for the machine's own address, and then listens on all of them, unless it holds that there are
    no clusters here (its default on macOS). A mode or a token in the environment counts; otherwise there is a fresh
    token, in environments and nowhere else. What Ray has read of its environment it is made to read again.
    """
    wanted = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        wanted["RAY_AUTH_MODE"] = "token"
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    before, possible = {name: os.environ.get(name) for name in wanted}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    _read_again(possible=False)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            os.environ.update({} if value is None else {name: value})
        _read_again(possible=possible)


def _read_again(*, possible: bool) -> None:
    ray_constants.ENABLE_RAY_CLUSTER = possible
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _room(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Workers that fit on one node: shares of a GPU never add up across GPUs."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus)
    if not gpus:
        return by_cpu
    n_gpus = node.get("GPU", 0.0)
    by_gpu = n_gpus / gpus if gpus >= 1 else math.floor(n_gpus) * math.floor(1 / gpus + 1e-9)
    return min(by_cpu, math.floor(by_gpu + 1e-9))


def _answers(questions: Collection[Any]) -> dict[Any, float | None]:
    """Those of the open questions that were answered; a dead worker's with None."""
    ready, _ = ray.wait(list(questions), num_returns=len(questions), timeout=0)
    out: dict[Any, float | None] = {}
    for question in ready:
        try:
            out[question] = ray.get(question)
        except RayError:
            out[question] = None
    return out


def _cause(error: RayError) -> FailureKind:
    if isinstance(error, OutOfMemoryError):
        return FailureKind.OUT_OF_MEMORY
    # Of a worker that died on a machine that lives, that machine tells; a broken connection alone tells of neither.
    lost = isinstance(error, (NodeDiedError, ActorUnavailableError)) or "node has died" in str(error)
    return FailureKind.NODE_LOST if lost else FailureKind.WORKER_DIED


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    """Where Ray shows the worker's own error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
