"""Damaged artifacts are set aside and computed again before the tasks that read them."""

import time
from dataclasses import dataclass, field

from wmarena.orchestrator.journal.protocol import RunJournal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import State, Task, TaskId
from wmarena.orchestrator.running.ledger import Ledger
from wmarena.orchestrator.store.local import Store

_MOST = 3


@dataclass
class Recomputation:
    """Computes damaged artifacts again, each at most three times."""

    ledger: Ledger
    journal: RunJournal
    store: Store
    made: dict[TaskId, int]  # how often each artifact was computed again
    _ended: dict[TaskId, float] = field(default_factory=dict)

    def possible(self, damaged: TaskId, task: Task) -> bool:
        """Return whether ``damaged``, which ``task`` found damaged, may be computed again."""
        return damaged in task.parent_ids and self.made.get(damaged, 0) < _MOST

    def begin(self, damaged: TaskId, task: Task, began: float) -> list[Record]:
        """Set a damaged artifact aside and compute it again before ``task``, whose attempt started at ``began``.

        Returns:
            Records of tasks skipped because it cannot run again.
        """
        # Several children report the same damage: attempts that began before the last repair read the old file.
        news = self._ended.get(damaged, 0.0) < began and self.ledger.state[damaged] is State.DONE
        if not news:
            return self.ledger.requeue(task.id, blameless=True)
        self.made[damaged] = self.made.get(damaged, 0) + 1
        self.store.set_aside(damaged)
        self.journal.forget([damaged])
        return self.ledger.reopen(damaged, task.id)

    def end(self, task: Task) -> bool:
        """Record that ``task`` is done; return whether it replaced a damaged artifact."""
        if task.id not in self.made:
            return False
        self._ended[task.id] = time.monotonic()
        return True
