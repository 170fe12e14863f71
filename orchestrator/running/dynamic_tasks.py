"""New tasks join a run under way: what a finished task calls for, and what a source has when workers would idle."""

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
    """Lets the plan of one run grow.

    Attributes:
        grow: may add tasks whenever one is done.
        source: is asked for tasks whenever fewer are ready than workers are idle.
        quarantined: tasks that an earlier run gave up as poison, with what it said: they fail without an attempt.
    """

    settling: TaskOutcomes
    store: Store
    grow: Grow | None
    source: TaskSource | None
    quarantined: Mapping[TaskId, str]

    def catch_up(self) -> None:
        """Settle what is in quarantine; show what was finished before, so that searches and studies go on."""
        plan, ledger = self.settling.plan, self.settling.ledger
        self._set_apart(list(plan))
        done = [plan.tasks[i] for i, r in ledger.records.items() if r.state is State.DONE]
        for task in done:
            self.settling.inform(task, ledger.records[task.id])
        self.extend(done)

    def extend(self, done: Iterable[Task]) -> None:
        """Ask ``grow`` about tasks that are done, and about those of its answers that were done before."""
        if self.grow is None or self.settling.gave_up:
            return
        todo = deque(done)
        while todo:
            task = todo.popleft()
            growth = self.grow(task, self.settling.ledger.records[task.id].result or {})
            if growth is not None:
                todo.extend(self._join(growth))

    def pull(self, n_idle: Callable[[], int]) -> None:
        """Ask the source for work while workers would have nothing to do."""
        ledger = self.settling.ledger
        while self.source is not None and not self.settling.gave_up:
            if ledger.ready() >= max(n_idle(), int(ledger.settled)):
                return
            growth = self.source.more()
            if growth is None:
                return
            self.extend(self._join(growth))

    def _join(self, growth: Growth) -> list[Task]:
        """Tasks and cells join the plan; returns those of the tasks that were finished before."""
        settling, ledger, journal = self.settling, self.settling.ledger, self.settling.journal
        new = settling.plan.add(*growth)
        found = find([t.id for t in new], self.store, journal)
        skipped = ledger.join(new, found.records)
        finished = [t for t in new if ledger.state[t.id] is State.DONE]
        journal.extend_run(settling.run, [t.id for t in new], {t.id for t in finished}, growth[1])
        for task in finished:
            settling.inform(task, ledger.records[task.id])
        settling.skip(skipped)
        self._set_apart(new)
        return finished

    def _set_apart(self, tasks: Iterable[Task]) -> None:
        for task in tasks if self.quarantined else ():
            why = self.quarantined.get(task.id)
            if why is not None and self.settling.ledger.state[task.id] in (State.WAITING, State.READY):
                self.settling.settle(task, Record(task.id, State.FAILED, error=why))
