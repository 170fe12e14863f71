"""Damaged artifacts: set aside, and their tasks run again before whoever found them."""

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
    """Computes damaged artifacts again, each a few times at most.

    Attributes:
        made: how often an artifact was computed again.
    """

    ledger: Ledger
    journal: RunJournal
    store: Store
    made: dict[TaskId, int]
    _ended: dict[TaskId, float] = field(default_factory=dict)

    def possible(self, damaged: TaskId, task: Task) -> bool:
        """True if ``task`` may wait for ``damaged``, which it found damaged, to run again."""
        return damaged in task.parent_ids and self.made.get(damaged, 0) < _MOST

    def begin(self, damaged: TaskId, task: Task, began: float) -> list[Record]:
        """Set a damaged artifact aside and let its task run again before ``task``, whose attempt ``began`` then.

        Several children find the same damage: only the first report, of an attempt since the last repair, counts.

        Returns:
            Records of what is skipped because it cannot run again.
        """
        news = self._ended.get(damaged, 0.0) < began and self.ledger.state[damaged] is State.DONE
        if not news:
            return self.ledger.requeue(task.id, blameless=True)
        self.made[damaged] = self.made.get(damaged, 0) + 1
        self.store.set_aside(damaged)
        self.journal.forget([damaged])
        return self.ledger.reopen(damaged, task.id)

    def end(self, task: Task) -> bool:
        """``task`` is done; True if that is a repair."""
        if task.id not in self.made:
            return False
        self._ended[task.id] = time.monotonic()
        return True
