"""How long tasks of one class take, and which are so short that several are sent in one call."""

from collections.abc import Callable, Mapping

from wmarena.orchestrator.plan.task import Task, TaskClass, task_class

_TINY_S = 0.005


def expected_seconds(durations: Mapping[TaskClass, float]) -> Callable[[Task], float]:
    """Expected seconds of a task: the journal's median for its class, else the plan's guess."""
    return lambda task: durations.get(task_class(task), task.cost)


class DurationEstimator:
    """A moving average of what each class has been taking in this run."""

    def __init__(self) -> None:
        self._seconds: dict[TaskClass, float] = {}

    def learn(self, task: Task, seconds: float) -> None:
        """A task is done."""
        kind = task_class(task)
        self._seconds[kind] = 0.7 * self._seconds.get(kind, seconds) + 0.3 * seconds

    def tiny(self, task: Task) -> bool:
        """True if tasks of its class have been taking a few milliseconds."""
        return self._seconds.get(task_class(task), 1.0) <= _TINY_S
