"""Expected task durations, and which tasks are short enough to send several in one call."""

from collections.abc import Callable, Mapping

from wmarena.orchestrator.plan.task import Task, TaskClass, task_class

_TINY_S = 0.005


def expected_seconds(durations: Mapping[TaskClass, float]) -> Callable[[Task], float]:
    """Return a function from task to expected seconds: the journal's median for its class, else the plan's guess."""
    return lambda task: durations.get(task_class(task), task.cost)


class DurationEstimator:
    """Moving average of the seconds that tasks of each class took in this run."""

    def __init__(self) -> None:
        self._seconds: dict[TaskClass, float] = {}

    def learn(self, task: Task, seconds: float) -> None:
        """Add the duration of a finished task."""
        kind = task_class(task)
        # Exponential average: follows a change of speed within a few tasks, smooths single outliers.
        self._seconds[kind] = 0.7 * self._seconds.get(kind, seconds) + 0.3 * seconds

    def tiny(self, task: Task) -> bool:
        """Return whether tasks of its class have taken a few milliseconds."""
        return self._seconds.get(task_class(task), 1.0) <= _TINY_S
