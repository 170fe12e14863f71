"""Reports task outcomes to the ledger, the journal, the task source and the listeners."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wmarena.orchestrator.journal.protocol import RunJournal
from wmarena.orchestrator.plan.events import Event, EventKind, Listener
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.growth import TaskSource
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import State, Task
from wmarena.orchestrator.running.ledger import Ledger


@dataclass
class TaskOutcomes:
    """Settles the tasks of one run."""

    plan: Plan
    ledger: Ledger
    journal: RunJournal
    run: str  # id of the execution, for the journal
    listeners: Sequence[Listener]
    source: TaskSource | None
    fail_fast: bool  # the first failure skips all tasks that have not begun
    gave_up: bool = False  # this has happened; no tasks are added any more

    def settle(self, task: Task, record: Record, trace: str = "") -> None:
        """Record a task that is done or has finally failed, and the tasks skipped because of it."""
        skipped = self.ledger.close(record)
        self.journal.record(self.run, task, record, trace)
        self.notify_source(task, record)
        self.emit("done" if record.state is State.DONE else "failed", task, record.worker, record)
        self.skip(skipped)
        if record.state is State.FAILED and self.fail_fast:
            self._skip_the_rest(task)

    def skip(self, skipped: Iterable[Record]) -> None:
        """Record tasks that the ledger has skipped."""
        for lost in skipped:
            child = self.plan.tasks[lost.task_id]
            self.journal.record(self.run, child, lost)
            self.notify_source(child, lost)
            self.emit("skipped", child, record=lost)

    def retry(self, task: Task, record: Record) -> None:
        """Record a failed attempt that will be repeated."""
        self.journal.attempt(self.run, task.id, record)
        self.emit("retried", task, record.worker, record)

    def notify_source(self, task: Task, record: Record) -> None:
        """Tell the task source that a task was settled."""
        if self.source is not None:
            self.source.settled(task, record)

    def emit(self, kind: EventKind, task: Task, worker: str = "", record: Record | None = None) -> None:
        """Send an event to the listeners."""
        for listener in self.listeners:
            listener(Event(kind, task, worker, record))

    def _skip_the_rest(self, task: Task) -> None:
        self.gave_up = True
        for other in list(self.plan):
            if self.ledger.state[other.id] in (State.WAITING, State.READY):
                record = Record(other.id, State.SKIPPED, error=f"skipped: {task.label} failed (--fail-fast)")
                self.skip([record, *self.ledger.close(record)])
