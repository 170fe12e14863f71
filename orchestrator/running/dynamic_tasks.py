"""Tasks added to a running plan: by a finished task (``grow``) or by a source when workers would idle."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.growth import Grow, Growth, TaskSource
from wmarena.orchestrator.plan.task import State, Task, TaskId
from wmarena.orchestrator.running.outcomes import TaskOutcomes
from wmarena.orchestrator.running.resume import find
from wmarena.orchestrator.store.local import Store


@dataclass
class DynamicTasks:
    """Adds tasks to the plan of one run."""

    outcomes: TaskOutcomes
    store: Store
    grow: Grow | None  # may add tasks after each finished task
    source: TaskSource | None  # asked for tasks when fewer tasks are ready than workers are idle
    quarantined: Mapping[TaskId, str]  # task -> error of an earlier run; these tasks fail without an attempt

    def resume(self) -> None:
        """Fail quarantined tasks; report tasks finished before the run, so that searches and studies continue."""
        plan, ledger = self.outcomes.plan, self.outcomes.ledger
        self._fail_quarantined(list(plan))
        done = [plan.tasks[i] for i, r in ledger.records.items() if r.state is State.DONE]
        for task in done:
            self.outcomes.notify_source(task, ledger.records[task.id])
        self.extend(done)

    def extend(self, done: Iterable[Task]) -> None:
        """Call ``grow`` for finished tasks, and for added tasks that are finished already."""
        if self.grow is None or self.outcomes.gave_up:
            return
        todo = deque(done)
        while todo:
            task = todo.popleft()
            growth = self.grow(task, self.outcomes.ledger.records[task.id].result or {})
            if growth is not None:
                todo.extend(self._add(growth))

    def pull(self, n_idle: Callable[[], int]) -> None:
        """Ask the source for tasks while workers would idle."""
        ledger = self.outcomes.ledger
        while self.source is not None and not self.outcomes.gave_up:
            if ledger.ready() >= max(n_idle(), int(ledger.settled)):
                return
            growth = self.source.more()
            if growth is None:
                return
            self.extend(self._add(growth))

    def _add(self, growth: Growth) -> list[Task]:
        """Add tasks and cells to the plan; return the tasks that were finished before."""
        outcomes, ledger, journal = self.outcomes, self.outcomes.ledger, self.outcomes.journal
        new = outcomes.plan.add(*growth)
        found = find([t.id for t in new], self.store, journal)
        skipped = ledger.join(new, found.records)
        finished = [t for t in new if ledger.state[t.id] is State.DONE]
        journal.extend_run(outcomes.run, [t.id for t in new], {t.id for t in finished}, growth[1])
        for task in finished:
            outcomes.notify_source(task, ledger.records[task.id])
        outcomes.skip(skipped)
        self._fail_quarantined(new)
        return finished

    def _fail_quarantined(self, tasks: Iterable[Task]) -> None:
        for task in tasks if self.quarantined else ():
            why = self.quarantined.get(task.id)
            if why is not None and self.outcomes.ledger.state[task.id] in (State.WAITING, State.READY):
                self.outcomes.settle(task, Record(task.id, State.FAILED, error=why))
