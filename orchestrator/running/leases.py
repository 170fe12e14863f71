"""Tasks that other drivers on the same journal are computing."""

import time
from dataclasses import dataclass, field

from wmarena.orchestrator.journal.protocol import RunJournal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import Task

_POLL_S = 0.5


@dataclass
class LeasedTasks:
    """Tasks left to other drivers until these finish them or end."""

    journal: RunJournal
    tasks: list[Task] = field(default_factory=list)  # leased by others and not known to be finished
    _polled: float = 0.0

    def claim(self, tasks: list[Task]) -> tuple[list[Task], list[tuple[Task, Record]]]:
        """Lease tasks; return those that this driver may run, and those that others have finished meanwhile."""
        claim = self.journal.claim([task.id for task in tasks])
        if len(claim.mine) == len(tasks):
            return tasks, []
        self.tasks += [task for task in tasks if task.id not in claim.mine and task.id not in claim.done]
        done = [(task, claim.done[task.id]) for task in tasks if task.id in claim.done]
        return [task for task in tasks if task.id in claim.mine], done

    def poll(self) -> list[tuple[Task, Record | None]]:
        """Return each leased task with its record, or with None to claim it again; nothing between two polls."""
        if not self.tasks or time.monotonic() - self._polled < _POLL_S:
            return []
        # A lease ends with its driver's session, so a task that is not finished is claimed again, not waited for.
        self._polled = time.monotonic()
        tasks, self.tasks = self.tasks, []
        done = self.journal.finished(task.id for task in tasks)
        return [(task, done.get(task.id)) for task in tasks]
