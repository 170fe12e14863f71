"""What tasks of one sort take, and which take so little that several travel in one call."""

from collections.abc import Callable, Mapping

from wmarena.orchestrator.plan.task import Task

TaskClass = tuple[str, str, str, str]
"""(kind, workload, scheme, attack): tasks of one sort take about the same time."""

_TINY_S = 0.005


def task_class(task: Task) -> TaskClass:
    """The sort of a task."""
    return (task.kind.value, task.workload, task.scheme, task.attack)


def expected_seconds(durations: Mapping[TaskClass, float]) -> Callable[[Task], float]:
    """Expected seconds of a task: the journal's median for its sort, else the plan's guess."""
    return lambda task: durations.get(task_class(task), task.cost)


class DurationEstimator:
    """A moving average of what each sort has been taking in this run."""

    def __init__(self) -> None:
        self._seconds: dict[TaskClass, float] = {}

    def learn(self, task: Task, seconds: float) -> None:
        """A task is done."""
        sort = task_class(task)
        self._seconds[sort] = 0.7 * self._seconds.get(sort, seconds) + 0.3 * seconds

    def tiny(self, task: Task) -> bool:
        """True if tasks of its sort have been taking a few milliseconds."""
        return self._seconds.get(task_class(task), 1.0) <= _TINY_S
