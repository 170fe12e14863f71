"""What became of a task, told to everybody who keeps count: ledger, journal, source, listeners."""

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
    """Settles the tasks of one run.

    Attributes:
        run: id of the execution, for the journal.
        fail_fast: the first failure skips everything that has not begun.
        gave_up: that has happened; nothing joins any more.
    """

    plan: Plan
    ledger: Ledger
    journal: RunJournal
    run: str
    listeners: Sequence[Listener]
    source: TaskSource | None
    fail_fast: bool
    gave_up: bool = False

    def settle(self, task: Task, record: Record, trace: str = "") -> None:
        """A task is done or has failed for good; what its failure costs is skipped."""
        skipped = self.ledger.close(record)
        self.journal.record(self.run, task, record, trace)
        self.inform(task, record)
        self.tell("done" if record.state is State.DONE else "failed", task, record.worker, record)
        self.skip(skipped)
        if record.state is State.FAILED and self.fail_fast:
            self._give_up(task)

    def skip(self, skipped: Iterable[Record]) -> None:
        """The ledger has skipped tasks."""
        for lost in skipped:
            child = self.plan.tasks[lost.task_id]
            self.journal.record(self.run, child, lost)
            self.inform(child, lost)
            self.tell("skipped", child, record=lost)

    def retry(self, task: Task, record: Record) -> None:
        """An attempt ended that will be repeated."""
        self.journal.attempt(self.run, task.id, record)
        self.tell("retried", task, record.worker, record)

    def inform(self, task: Task, record: Record) -> None:
        """Let the source know of a settled task."""
        if self.source is not None:
            self.source.settled(task, record)

    def tell(self, kind: EventKind, task: Task, worker: str = "", record: Record | None = None) -> None:
        """Let the listeners know."""
        for listener in self.listeners:
            listener(Event(kind, task, worker, record))

    def _give_up(self, task: Task) -> None:
        self.gave_up = True
        for other in list(self.plan):
            if self.ledger.state[other.id] in (State.WAITING, State.READY):
                record = Record(other.id, State.SKIPPED, error=f"skipped: {task.label} failed (--fail-fast)")
                self.skip([record, *self.ledger.close(record)])
