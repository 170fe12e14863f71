"""Ray actors, one per GPU (or share of one) or CPU slot.

Weights never pass through Ray: an actor reads and writes the store and returns a small dict. Ray restarts and retries
nothing (``max_restarts=0, max_task_retries=0``): a dead actor is replaced here, its task is requeued by the loop.
The run does not wait for actors to start: one is idle after its ``hello``. Nodes may join and leave.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from wmarena.orchestrator.executors.base import Completion, Executor, NoWorkers, Vitals
from wmarena.orchestrator.executors.cluster import Cluster
from wmarena.orchestrator.executors.heartbeats import Heartbeats
from wmarena.orchestrator.executors.placement import found, per_gpu, place, room
from wmarena.orchestrator.executors.ray_errors import failure_of, last_line
from wmarena.orchestrator.executors.roster import Roster, WorkerSlot
from wmarena.orchestrator.executors.worker import Worker, is_lost
from wmarena.orchestrator.plan.task import Task
from wmarena.orchestrator.worker.context import Setup

logger = logging.getLogger(__name__)

PERFORM = "wmarena.orchestrator.worker.attempt:attempt_task"
_FEW = 4
_HEARTBEAT = "heartbeat"
_HEARTBEAT_S = 5.0
PATIENCE_S = 300.0  # a cloud machine takes minutes to start


class GpuWorker(Worker):
    """A ``Worker`` as an actor: Ray provides cancellation, node and GPUs."""

    def __init__(self, setup: Setup, perform: str, environment: dict[str, str]) -> None:
        super().__init__(setup, perform, environment, lambda: bool(ray.get_runtime_context().is_canceled()))

    def heartbeat(self) -> float:
        """Return ``still_s`` from a thread of its own: no answer means that the whole process hangs."""
        return self.still_s()

    def hello(self) -> dict[str, Any]:
        """Return node and GPUs once the worker has started."""
        return {"node": ray.get_runtime_context().get_node_id(), "gpus": tuple(ray.get_gpu_ids())}


class RayExecutor(Executor):
    """A pool of ``GpuWorker`` actors on a local or an existing cluster.

    On an existing cluster the pool follows the nodes: it grows up to ``workers`` when nodes join, and drops an actor
    that found no node for ``patience_s``.

    Args:
        setup: configuration of each worker; paths must be valid on every node.
        workers: most actors, or None: one per GPU share, or per CPU where there is no GPU.
        gpus_per_worker: GPUs (or a fraction) per actor, or None: ``share`` if the cluster has GPUs, else 0.
        share: measured share of a GPU that tasks need.
        address: Ray address, or None to start a local cluster bound to loopback.
        perform: "module:function" that computes one task.
        patience_s: how long an actor may take to start.
        look_s: seconds between two checks of the nodes.
        heartbeat_s: seconds between two heartbeat requests.
    """

    name = "ray"

    def __init__(
        self,
        setup: Setup,
        *,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        share: float = 1.0,
        address: str | None = None,
        perform: str = PERFORM,
        patience_s: float = PATIENCE_S,
        look_s: float = 5.0,
        heartbeat_s: float = _HEARTBEAT_S,
    ) -> None:
        # A worker on this machine may have another working directory.
        files = {n: getattr(setup, n) for n in ("store", "keys", "data_root", "root_file", "passphrase_file")}
        here: dict[str, Any] = {n: p.expanduser().absolute() for n, p in files.items() if isinstance(p, Path)}
        self._setup = replace(setup, **here)
        self._wanted = workers
        self._gpus = gpus_per_worker
        self._share = share
        self._cluster = Cluster(address)
        self._perform = perform
        self._patience_s = patience_s
        self._look_s = look_s
        self._roster = Roster(patience_s)
        self._next_look = 0.0
        self._heartbeats = Heartbeats(heartbeat_s, self._ask, _answers, time.monotonic)
        self._made = 0

    @property
    def workers(self) -> Sequence[str]:
        return tuple(self._roster.slots)

    # Starting

    def start(self) -> None:
        self._cluster.connect(self._wanted)
        nodes = self._cluster.nodes()
        self._gpus, n_workers = place(
            nodes.values(),
            cpus=self._setup.threads,
            gpus=self._gpus,
            share=self._share,
            wanted=self._wanted,
            grows=self._cluster.grows,
        )
        self._next_look = time.monotonic() + self._look_s
        self._roster.update_nodes(nodes)
        for _ in range(n_workers):
            self._add()
        self._await_first()

    def _add(self, *, whole: bool = False) -> None:
        """Start one actor. It sets its environment itself: Ray's runtime_env would show it in the dashboard."""
        name = f"worker-{self._made}"
        self._made += 1
        threads = self._setup.threads
        environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment |= {} if self._gpus else {"CUDA_VISIBLE_DEVICES": ""}
        gpus = 1.0 if whole else self._gpus
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        worker = ray.remote(**options, concurrency_groups={_HEARTBEAT: 1})(GpuWorker)
        actor = worker.remote(self._setup, self._perform, environment)
        self._roster.add(name, WorkerSlot(actor, time.monotonic(), whole=whole), actor.hello.remote())

    def _await_first(self) -> None:
        """Block until one worker has started."""
        deadline = time.monotonic() + self._patience_s
        while not any(slot.ready for slot in self._roster.slots.values()):
            if not self._roster.slots:
                raise NoWorkers(f"expected workers that start, got: {self._roster.refusal}")
            hellos = list(self._roster.hellos)
            heard, _ = ray.wait(hellos, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not heard:
                there = found(self._cluster.nodes().values())
                raise NoWorkers(
                    f"expected a worker within {self._patience_s:.0f} s, got none: {there}; "
                    "lower --workers or --gpus-per-worker, or free the cluster"
                )
            self._greet(heard[0])

    def _greet(self, hello: Any) -> None:
        """Handle the answer to ``hello``: a worker has started or failed to."""
        worker = self._roster.hellos.pop(hello)
        try:
            facts: Mapping[str, Any] = ray.get(hello)
        except RayError as error:
            logger.warning("%s could not start: %s", worker, last_line(error))
            self._roster.pause_starts(last_line(error), time.monotonic())
            self._drop(worker)
        else:
            self._roster.mark_started(worker, facts)

    # Working

    def idle(self) -> Sequence[str]:
        idle = [name for name, slot in self._roster.slots.items() if slot.idle]
        return sorted(idle, key=lambda name: not self._roster.slots[name].whole)

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        slot = self._roster.slots[worker]
        slot.tasks = tuple(tasks)
        slot.call = slot.actor.perform.remote(slot.tasks)
        self._roster.calls[slot.call] = worker

    def wait(self, timeout: float) -> list[Completion]:
        if time.monotonic() >= self._next_look:
            self._look()
        roster = self._roster
        pending = [*roster.calls, *roster.hellos]
        if not pending:
            return []
        first, _ = ray.wait(pending, num_returns=1, timeout=timeout)
        if not first:
            return []
        # The second wait costs a tenth of a tiny task: worthwhile only if several answers may be ready.
        ready = first if len(pending) <= _FEW else ray.wait(pending, num_returns=len(pending), timeout=0)[0]
        ended: list[Completion] = []
        for reference in ready:
            if reference in roster.hellos:
                self._greet(reference)
            elif reference in roster.calls:
                ended += self._collect(reference)
        return ended

    def _collect(self, call: Any) -> list[Completion]:
        worker = self._roster.calls.pop(call)
        slot = self._roster.slots[worker]
        tasks, slot.tasks, slot.call = slot.tasks, (), None
        lost = False
        try:
            outcomes = cast("list[tuple[Any, float]]", ray.get(call))
            lost = any(is_lost(outcome) for outcome, _ in outcomes)
            ended = [Completion(t.id, worker, o, s) for t, (o, s) in zip(tasks, outcomes, strict=True)]
        except RayError as error:
            failure, lost = failure_of(error)
            ended = [Completion(t.id, worker, failure, 0.0, alone=len(tasks) == 1) for t in tasks]
        if lost or slot.leaving:
            self.replace(worker)
        return ended

    def vitals(self) -> Mapping[str, Vitals]:
        return self._heartbeats.vitals(self._roster.calls.values())

    def _ask(self, worker: str) -> Any:
        return self._roster.slots[worker].actor.heartbeat.options(concurrency_group=_HEARTBEAT).remote()

    def replace(self, worker: str) -> None:
        slot = self._roster.slots[worker]
        self._drop(worker)
        if not slot.leaving:
            self._add(whole=slot.whole)

    def _drop(self, worker: str) -> None:
        with contextlib.suppress(RayError):
            ray.kill(self._roster.remove(worker).actor, no_restart=True)

    # Growing and shrinking

    def _look(self) -> None:
        """Drop workers whose node is gone or that found no place; start workers where there is room."""
        now = time.monotonic()
        self._next_look = now + self._look_s
        nodes = self._cluster.nodes()
        self._roster.update_nodes(nodes)
        for worker in [*self._roster.lost(nodes), *self._roster.unplaced(now)]:
            logger.warning("%s is dropped: its node is gone, or no node had room for it", worker)
            self._drop(worker)
        fits = sum(room(node, self._setup.threads, self._gpus or 0.0) for node in nodes.values())
        if self._roster.dedicated is not None:
            fits -= per_gpu(self._gpus or 1.0)
        for _ in range(self._roster.n_missing(min(fits, self._wanted or fits), now)):
            self._add()

    # A whole GPU for one task

    @property
    def shares_gpus(self) -> bool:
        return 0.0 < (self._gpus or 0.0) < 1.0

    def has_whole_gpu(self, worker: str) -> bool:
        slot = self._roster.slots.get(worker)
        return slot is not None and slot.whole

    def reserve_gpu(self, wanted: bool) -> bool:
        dedicated = self._roster.dedicated
        if not wanted and dedicated is not None and self._roster.slots[dedicated].call is None:
            self._drop(dedicated)
            self._next_look = 0.0  # restart the workers that left
        elif wanted and dedicated is None and not self._roster.whole_refused:
            for worker in self._roster.clear_gpu():
                self._drop(worker)
            self._add(whole=True)
        return self._roster.dedicated is not None

    # Stopping

    def cancel(self, patience_s: float) -> list[Completion]:
        for call in self._roster.calls:
            ray.cancel(call)
        ended: list[Completion] = []
        deadline = time.monotonic() + patience_s
        while self._roster.calls and time.monotonic() < deadline:
            ended += self.wait(max(0.05, deadline - time.monotonic()))
        return ended

    def stop(self) -> None:
        for worker in self.workers:
            self._drop(worker)
        self._cluster.disconnect()


def _answers(questions: Collection[Any]) -> dict[Any, float | None]:
    """Return the answered heartbeat requests; None for a dead worker."""
    ready, _ = ray.wait(list(questions), num_returns=len(questions), timeout=0)
    out: dict[Any, float | None] = {}
    for question in ready:
        try:
            out[question] = ray.get(question)
        except RayError:
            out[question] = None
    return out
