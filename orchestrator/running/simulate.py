"""Simulates a plan on N workers: the real loop, ledger and policy in virtual time.

Nothing is executed or written. Actual seconds of a task may differ from those that the policy expects, as in a real
run: the policy uses medians, the clock uses measured durations.

    lower bound = max(total work / workers, critical path)
    graph bound = max over r of  r + work that cannot begin before r / workers,   and the same from the end

No schedule is shorter than either. The second accounts for the few tasks that can run while the first models are
trained: the gap between the bounds is due to the graph, and at most the rest to the policy.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wmarena.orchestrator.executors.virtual import VirtualExecutor
from wmarena.orchestrator.journal.protocol import RunJournal
from wmarena.orchestrator.plan.events import Listener
from wmarena.orchestrator.plan.evidence import Lease, Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import State, Task, TaskId
from wmarena.orchestrator.running.ledger import Ledger, Policy
from wmarena.orchestrator.running.loop import Loop
from wmarena.orchestrator.running.retry import Limits
from wmarena.orchestrator.store.local import Store

TaskSeconds = Callable[[Task], float]


@dataclass(frozen=True)
class Schedule:
    """Result of a simulated run. All times in virtual seconds."""

    workers: int  # number of workers
    tasks: int  # number of tasks that ran
    makespan_s: float  # from the first start to the last end
    busy_s: float  # total work in worker-seconds
    critical_path_s: float  # the longest chain of tasks that wait for each other
    graph_bound_s: float  # lower bound from the graph on this many workers; never below ``lower_bound_s``

    @property
    def lower_bound_s(self) -> float:
        """Lower bound of the makespan from total work and critical path."""
        return max(self.busy_s / self.workers, self.critical_path_s)

    @property
    def over_bound(self) -> float:
        """Makespan / lower bound; 1 if no task takes time."""
        return self.makespan_s / self.lower_bound_s if self.lower_bound_s else 1.0

    @property
    def utilisation(self) -> float:
        """Share of worker-seconds in use, in [0, 1]; 1 if no task takes time."""
        return self.busy_s / (self.makespan_s * self.workers) if self.makespan_s else 1.0

    def document(self) -> dict[str, Any]:
        """Return all values as JSON."""
        return {
            "workers": self.workers,
            "tasks": self.tasks,
            "makespan_s": self.makespan_s,
            "utilisation": self.utilisation,
            "critical_path_s": self.critical_path_s,
            "total_work_s": self.busy_s,
            "lower_bound_s": self.lower_bound_s,
            "makespan_over_lower_bound": self.over_bound,
            "graph_bound_s": self.graph_bound_s,
        }


class NullJournal(RunJournal):
    """A journal that stores nothing and knows nothing; it inherits methods that do nothing."""

    pending = False

    def finished(self, ids: Iterable[TaskId]) -> dict[TaskId, Record]:
        return {}

    def claim(self, ids: Sequence[TaskId]) -> Lease:
        return Lease(set(ids), {})


def simulate(
    plan: Plan,
    n_workers: int,
    *,
    store: Store,
    expected: TaskSeconds,
    actual: TaskSeconds,
    finished: Mapping[TaskId, Record] | None = None,
    policy: Policy = "throughput",
    listeners: Sequence[Listener] = (),
) -> Schedule:
    """Simulate ``plan`` as it is, without the tasks that a search would add during a run.

    Args:
        store: asked whether artifacts of finished tasks can be read; never written.
        expected: seconds that the policy expects of a task.
        actual: seconds that a task takes.
        finished: records of tasks that need not run.
        listeners: get the events of an ordinary run.
    """
    executor = VirtualExecutor(n_workers, actual)
    ledger = Ledger(plan, finished or {}, store.has, expected, policy)
    missing = [task for task in plan if ledger.state[task.id] is not State.DONE]
    limits = Limits(task_timeout_s=math.inf)
    Loop(plan, ledger, executor, NullJournal(), store, "simulation", limits, listeners).drive()
    paths = PathLengths.of(plan, missing, actual)
    longest, bound = paths.longest(), paths.bound(n_workers)
    return Schedule(n_workers, len(missing), executor.now, executor.busy_s, longest, bound)


@dataclass(frozen=True)
class PathLengths:
    """Longest path before, duration of, and longest path after each task, in seconds; aligned lists."""

    before: Sequence[float]
    within: Sequence[float]
    after: Sequence[float]

    @classmethod
    def of(cls, plan: Plan, tasks: Sequence[Task], seconds: TaskSeconds) -> "PathLengths":
        """Compute the longest paths among ``tasks`` (parents first); other tasks of the plan are finished."""
        length = {task.id: seconds(task) for task in tasks}
        # Dynamic programming in topological order; ``plan`` lists parents before children.
        before: dict[TaskId, float] = {}
        after: dict[TaskId, float] = {}
        for task in tasks:
            earlier = (before[i] + length[i] for i in task.waits_for if i in length)
            before[task.id] = max(earlier, default=0.0)
        for task in reversed(tasks):
            later = (after[i] + length[i] for i in plan.children(task.id) if i in length)
            after[task.id] = max(later, default=0.0)
        return cls(list(before.values()), list(length.values()), [after[i] for i in length])

    def longest(self) -> float:
        """Return the seconds of the critical path."""
        return max(map(sum, zip(self.before, self.within, strict=True)), default=0.0)

    def bound(self, n_workers: int) -> float:
        """Return the lower bound of the makespan on ``n_workers``."""
        work = sum(self.within) / n_workers
        return max(
            work, self.longest(), self._staircase(self.before, n_workers), self._staircase(self.after, n_workers)
        )

    def _staircase(self, ends: Sequence[float], n_workers: int) -> float:
        """Return the maximum over r of r + (work of all tasks at distance r or more from the end) / workers."""
        # That work cannot run in the r seconds beside the end, and the workers share it at best evenly.
        most = work = 0.0
        for end, seconds in sorted(zip(ends, self.within, strict=True), reverse=True):
            work += seconds
            most = max(most, end + work / n_workers)
        return most
