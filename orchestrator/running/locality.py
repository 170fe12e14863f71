"""Which models each worker may still have in memory: a task whose parent is among them need not load it."""

from collections import OrderedDict
from collections.abc import Collection

from wmarena.orchestrator.plan.task import Task, TaskId

_MOST = 16


class ModelLocality:
    """Models that each worker has recently read or made."""

    def __init__(self) -> None:
        self._by_worker: dict[str, OrderedDict[TaskId, None]] = {}

    def of(self, worker: str) -> Collection[TaskId]:
        """Return tasks whose models ``worker`` may have in memory."""
        return self._by_worker.get(worker, ())

    def add(self, worker: str, task: Task) -> None:
        """Record that ``worker`` has finished ``task``."""
        models = self._by_worker.setdefault(worker, OrderedDict())
        for task_id in (*task.parent_ids, task.id):
            models[task_id] = None
            models.move_to_end(task_id)
        while len(models) > _MOST:
            models.popitem(last=False)
