"""Virtual workers on a clock that jumps to the next end of a call.

For simulations of a plan on any number of workers, and for measuring the scheduler's own cost.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wmarena.orchestrator.executors.base import Completion, Executor
from wmarena.orchestrator.plan.task import Task

NOTHING: Mapping[str, Any] = {}


class VirtualExecutor(Executor):
    """Lets every task succeed after its given number of virtual seconds.

    Args:
        n_workers: number of concurrent calls.
        seconds: duration of a task, 0 or more.
        outcome: result of every task.

    Attributes:
        now: virtual seconds since the start.
        busy_s: worker-seconds of all started calls.
    """

    name = "virtual"

    def __init__(self, n_workers: int, seconds: Callable[[Task], float], outcome: Mapping[str, Any] = NOTHING) -> None:
        if n_workers < 1:
            raise ValueError(f"expected 1 worker or more, got {n_workers}; pass n_workers >= 1")
        self.now = 0.0
        self.busy_s = 0.0
        self._seconds = seconds
        self._outcome = outcome
        self._names = tuple(f"virtual-{i}" for i in range(n_workers))
        self._idle = dict.fromkeys(self._names)
        self._calls: dict[str, list[Completion]] = {}
        self._ends: list[tuple[float, int, str]] = []  # (when, number of the call, worker)
        self._made = 0

    @property
    def workers(self) -> Sequence[str]:
        return self._names

    def start(self) -> None:
        """Start nothing."""

    def idle(self) -> Sequence[str]:
        return tuple(self._idle)

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        del self._idle[worker]
        self._calls[worker] = [
            Completion(t.id, worker, self._outcome, self._seconds(t), len(tasks) == 1) for t in tasks
        ]
        length = sum(c.seconds for c in self._calls[worker])
        self.busy_s += length
        self._made += 1
        heapq.heappush(self._ends, (self.now + length, self._made, worker))

    def wait(self, timeout: float) -> list[Completion]:
        """Advance the clock to the next end; return all calls that end then."""
        ended: list[Completion] = []
        if self._ends:
            self.now = self._ends[0][0]
        while self._ends and self._ends[0][0] == self.now:
            _, _, worker = heapq.heappop(self._ends)
            self._idle[worker] = None
            ended += self._calls.pop(worker)
        return ended

    def replace(self, worker: str) -> None:
        self._ends = [end for end in self._ends if end[2] != worker]
        heapq.heapify(self._ends)
        self._calls.pop(worker, None)
        self._idle[worker] = None

    def cancel(self, patience_s: float) -> list[Completion]:
        self.stop()
        return []

    def stop(self) -> None:
        self._ends.clear()
        self._calls.clear()
        self._idle = dict.fromkeys(self._names)
