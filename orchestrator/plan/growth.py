"""Interfaces by which a plan grows during a run: after a finished task, or from a source of tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import Task

Growth = tuple[Sequence[Task], Sequence[Cell]]
Grow = Callable[[Task, Mapping[str, Any]], Growth | None]
"""Called once with every finished task, including those finished before the run; may return tasks and cells to add."""


class TaskSource(Protocol):
    """Source of tasks that are unknown when a run begins: the trials of a study."""

    def settled(self, task: Task, record: Record) -> None:
        """Receive a task settled by this run or finished before; again if it was computed again."""

    def more(self) -> Growth | None:
        """Return tasks and cells to add, None if there are none now; called while a worker would idle."""
