"""Interface of the journal for the loop, so that a simulation can run without one."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from wmarena.orchestrator.plan.evidence import Lease, Record
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import Task, TaskId


class FinishedIndex(Protocol):
    """Looks up finished tasks: the journal."""

    def finished(self, ids: Iterable[TaskId]) -> dict[TaskId, Record]:
        """Return the records of those among ``ids`` that are done."""


class RunJournal(FinishedIndex, Protocol):
    """What the loop writes and reads: a ``Journal``, or a ``NullJournal`` in a simulation."""

    def record(self, run: str, task: Task, record: Record, trace: str = "") -> None:
        """Record a settled task."""
        return

    def attempt(self, run: str, task_id: TaskId, record: Record) -> None:
        """Record a failed attempt that will be repeated."""
        return

    def claim(self, ids: Sequence[TaskId]) -> Lease:
        """Lease tasks before running them: other drivers may be running them."""

    def forget(self, ids: Sequence[TaskId]) -> None:
        """Delete tasks whose artifacts were set aside."""
        return

    def extend_run(self, run: str, new: Sequence[TaskId], cached: set[TaskId], cells: Sequence[Cell] = ()) -> None:
        """Add tasks and table cells to the run."""
        return

    @property
    def pending(self) -> bool:
        """True if ``tick`` is to be called within ``FLUSH_S``."""

    def tick(self) -> None:
        """Write rows that have been pending for long enough."""
        return

    def flush(self) -> None:
        """Write all pending rows."""
        return
