"""What the loop asks of the system of record, so that a simulation can do without one."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from wmarena.orchestrator.plan.evidence import Lease, Record
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import Task, TaskId


class FinishedIndex(Protocol):
    """Who knows what is finished: the journal."""

    def finished(self, ids: Iterable[TaskId]) -> dict[TaskId, Record]:
        """Records of those among ``ids`` that are done."""


class RunJournal(FinishedIndex, Protocol):
    """What the loop writes down, and asks: a ``Journal``, or nothing at all in a simulation."""

    def record(self, run: str, task: Task, record: Record, trace: str = "") -> None:
        """A task was settled."""

    def attempt(self, run: str, task_id: TaskId, record: Record) -> None:
        """An attempt ended that will be repeated."""

    def claim(self, ids: Sequence[TaskId]) -> Lease:
        """Ask for tasks before they are begun: others may be at work on them."""

    def forget(self, ids: Sequence[TaskId]) -> None:
        """Artifacts were set aside."""

    def extend_run(self, run: str, new: Sequence[TaskId], cached: set[TaskId], cells: Sequence[Cell] = ()) -> None:
        """Tasks and table cells joined."""

    @property
    def pending(self) -> bool:
        """True if ``tick`` is to be called within ``FLUSH_S``."""

    def tick(self) -> None:
        """Write what has been pending for long enough."""

    def flush(self) -> None:
        """Write what is pending."""
