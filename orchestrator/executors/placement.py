"""How many workers fit on the nodes, and which share of a GPU each needs. Arithmetic only."""

import math
from collections.abc import Collection, Iterable, Mapping

from wmarena.orchestrator.executors.base import NoWorkers
from wmarena.orchestrator.plan.task import Task, TaskClass, task_class

Resources = Mapping[str, float]
"""Resources of one node by Ray's names: {"CPU": 8, "GPU": 2, ...}."""

MARGIN = 1.25
"""Factor on the measured peak, for fragmentation and variation between runs."""

CONTEXT_BYTES = 700 * 2**20
"""GPU memory of a process before its first tensor: context, kernels, workspaces."""

MOST_PER_GPU = 8


def place(
    nodes: Collection[Resources], *, cpus: int, gpus: float | None, share: float, wanted: int | None, grows: bool
) -> tuple[float, int]:
    """Return (GPUs per worker, number of workers to start).

    Args:
        cpus: CPUs per worker.
        gpus: GPUs per worker, or None: ``share`` of one if there are any.
        wanted: number of workers, or None: all that fit.
        grows: whether nodes may join, for instance an autoscaler's.

    Raises:
        NoWorkers: the requested workers would never fit.
    """
    if gpus is None:
        gpus = share if any(node.get("GPU", 0.0) for node in nodes) else 0.0
    fits = sum(room(node, cpus, gpus) for node in nodes)
    n_workers = fits if wanted is None else wanted
    if n_workers < 1 or (n_workers > fits and not grows):
        ask = " to have nodes made that have room" if grows else ""
        raise NoWorkers(
            f"expected room for {max(n_workers, 1)} worker(s) with {gpus:g} GPU and {cpus} CPU each, "
            f"got {found(nodes)}; set --workers / --gpus-per-worker{ask}, or use --executor inline"
        )
    return gpus, n_workers


def found(nodes: Collection[Resources]) -> str:
    """Describe the resources for messages."""
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"a cluster with {cpus:g} CPU and {gpus:g} GPU"


def room(node: Resources, cpus: int, gpus: float) -> int:
    """Return the number of workers that fit on one node; shares of different GPUs are not combined."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus)
    if not gpus:
        return by_cpu
    n_gpus = node.get("GPU", 0.0)
    # Ray places an actor's share on one GPU, so remainders of several GPUs are useless.
    by_gpu = n_gpus / gpus if gpus >= 1 else math.floor(n_gpus) * per_gpu(gpus)
    return min(by_cpu, math.floor(by_gpu + 1e-9))


def per_gpu(share: float) -> int:
    """Return the number of workers on one GPU, each with ``share`` of it (in (0, 1])."""
    return math.floor(1 / share + 1e-9)  # 1 / (1 / 3) may round below 3


def gpu_share(tasks: Iterable[Task], peaks: Mapping[TaskClass, tuple[int, int]]) -> float:
    """Return the largest share of a GPU that any task needs: 1, 1/2, ... 1/8; 1 if a class was never measured.

    Args:
        peaks: class -> (peak bytes of such a task on its GPU, total bytes of that GPU).
    """
    classes = {task_class(task) for task in tasks}
    if not classes <= peaks.keys():
        return 1.0
    # All workers are equal, so the class with the largest need decides; a process costs its context besides tensors.
    fits = [total / (peak * MARGIN + CONTEXT_BYTES) for peak, total in map(peaks.__getitem__, classes)]
    return 1.0 / max(1, min(MOST_PER_GPU, math.floor(min(fits, default=1.0))))
