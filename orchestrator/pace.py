"""What tasks of one sort take, and which take so little that several travel in one call."""

from collections.abc import Callable, Mapping

from orchestrator.task import Task

Sort = tuple[str, str, str, str]
"""(kind, workload, scheme, attack): tasks of one sort take about the same time."""

_TINY_S = 0.005


def sort_of(task: Task) -> Sort:
    """The sort of a task."""
    return (task.kind.value, task.workload, task.scheme, task.attack)


def expected_seconds(durations: Mapping[Sort, float]) -> Callable[[Task], float]:
    """Expected seconds of a task: the journal's median for its sort, else the plan's guess."""
    return lambda task: durations.get(sort_of(task), task.cost)


class Pace:
    """A moving average of what each sort has been taking in this run."""

    def __init__(self) -> None:
        self._seconds: dict[Sort, float] = {}

    def learn(self, task: Task, seconds: float) -> None:
        """A task is done."""
        sort = sort_of(task)
        self._seconds[sort] = 0.7 * self._seconds.get(sort, seconds) + 0.3 * seconds

    def tiny(self, task: Task) -> bool:
        """True if tasks of its sort have been taking a few milliseconds."""
        return self._seconds.get(sort_of(task), 1.0) <= _TINY_S
