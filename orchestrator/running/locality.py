"""Which models each worker may still hold: a task whose parent is among them need not load it."""

from collections import OrderedDict
from collections.abc import Collection

from wmarena.orchestrator.plan.task import Task, TaskId

_MOST = 16


class ModelLocality:
    """What each worker has read or made lately."""

    def __init__(self) -> None:
        self._by_worker: dict[str, OrderedDict[TaskId, None]] = {}

    def of(self, worker: str) -> Collection[TaskId]:
        """Tasks whose models ``worker`` may hold."""
        return self._by_worker.get(worker, ())

    def note(self, worker: str, task: Task) -> None:
        """``worker`` has done ``task``."""
        held = self._by_worker.setdefault(worker, OrderedDict())
        for task_id in (*task.parent_ids, task.id):
            held[task_id] = None
            held.move_to_end(task_id)
        while len(held) > _MOST:
            held.popitem(last=False)
