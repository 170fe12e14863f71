"""How a plan grows while it runs: by what a finished task calls for, or by work that nobody knew of when it began."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import Task

Growth = tuple[Sequence[Task], Sequence[Cell]]
Grow = Callable[[Task, Mapping[str, Any]], Growth | None]
"""Called once with every task that is done, also with those that were before; may return tasks and cells to add."""


class TaskSource(Protocol):
    """Work that is not known when a run begins: the trials of a study."""

    def settled(self, task: Task, record: Record) -> None:
        """A task of the plan was settled: by this run, or found finished; again if it had to be computed again."""

    def more(self) -> Growth | None:
        """Called while a worker would have nothing to do: what to add, None if nothing is to come now."""
