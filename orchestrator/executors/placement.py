"""How many workers fit where, and how large a share of a GPU each of them needs. Arithmetic only."""

import math
from collections.abc import Collection, Iterable, Mapping

from wmarena.orchestrator.executors.base import NoWorkers
from wmarena.orchestrator.plan.task import Task, TaskClass, task_class

Resources = Mapping[str, float]
"""What one node has, as Ray names it: {"CPU": 8, "GPU": 2, ...}."""

MARGIN = 1.25
"""Over the measured peak: the allocator's fragments, and what a repetition may take more."""

CONTEXT_BYTES = 700 * 2**20
"""What a process takes of a GPU before its first tensor: context, kernels, workspaces."""

MOST_PER_GPU = 8


def place(
    nodes: Collection[Resources], *, cpus: int, gpus: float | None, share: float, wanted: int | None, grows: bool
) -> tuple[float, int]:
    """(GPUs per worker, number of workers to begin with).

    Args:
        cpus: of each worker.
        gpus: of each worker, or None: ``share`` of one if there are any.
        wanted: number of workers, or None: all that fit.
        grows: whether nodes may join, for instance because more is asked for than there is.

    Raises:
        NoWorkers: what is asked for would be waited for in vain.
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
    """What there is, in words."""
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"a cluster with {cpus:g} CPU and {gpus:g} GPU"


def room(node: Resources, cpus: int, gpus: float) -> int:
    """Workers that fit on one node: shares of a GPU never add up across GPUs."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus)
    if not gpus:
        return by_cpu
    n_gpus = node.get("GPU", 0.0)
    by_gpu = n_gpus / gpus if gpus >= 1 else math.floor(n_gpus) * per_gpu(gpus)
    return min(by_cpu, math.floor(by_gpu + 1e-9))


def per_gpu(share: float) -> int:
    """Workers on one GPU, each with ``share`` of it (in (0, 1])."""
    return math.floor(1 / share + 1e-9)


def gpu_share(tasks: Iterable[Task], peaks: Mapping[TaskClass, tuple[int, int]]) -> float:
    """The largest share of a GPU that any of the tasks needs: 1, 1/2, ... 1/8; 1 if one's need is not known.

    Args:
        peaks: sort -> (most bytes that such a task has taken of its GPU, bytes that this GPU has).
    """
    sorts = {task_class(task) for task in tasks}
    if not sorts <= peaks.keys():
        return 1.0
    fits = [total / (peak * MARGIN + CONTEXT_BYTES) for peak, total in map(peaks.__getitem__, sorts)]
    return 1.0 / max(1, min(MOST_PER_GPU, math.floor(min(fits, default=1.0))))
