"""Tasks that other drivers on the same journal are at work on."""

import time
from dataclasses import dataclass, field

from wmarena.orchestrator.journal.protocol import RunJournal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import Task

_LOOK_S = 0.5


@dataclass
class LeasedTasks:
    """What is left to other drivers until they have done it or are gone.

    Attributes:
        tasks: those of them that are not known to be done.
    """

    journal: RunJournal
    tasks: list[Task] = field(default_factory=list)
    _looked: float = 0.0

    def claim(self, tasks: list[Task]) -> tuple[list[Task], list[tuple[Task, Record]]]:
        """Ask for tasks: those that no other driver is at work on, and those that others have done meanwhile."""
        claim = self.journal.claim([task.id for task in tasks])
        if len(claim.mine) == len(tasks):
            return tasks, []
        self.tasks += [task for task in tasks if task.id not in claim.mine and task.id not in claim.done]
        done = [(task, claim.done[task.id]) for task in tasks if task.id in claim.done]
        return [task for task in tasks if task.id in claim.mine], done

    def look(self) -> list[tuple[Task, Record | None]]:
        """Now and then: what is done by now, and, with None, what is to be asked for again: its driver may be gone."""
        if not self.tasks or time.monotonic() - self._looked < _LOOK_S:
            return []
        self._looked = time.monotonic()
        tasks, self.tasks = self.tasks, []
        done = self.journal.finished(task.id for task in tasks)
        return [(task, done.get(task.id)) for task in tasks]
