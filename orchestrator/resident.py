"""Recently used models on a device, least recently used first out, limited by bytes."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from orchestrator.task import TaskId


class Resident:
    """Models by task id. What it returns is shared: copy before changing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[TaskId, tuple[nn.Module, int]] = OrderedDict()
        self._bytes = 0

    def get(self, task_id: TaskId, load: Callable[[], nn.Module]) -> nn.Module:
        """The model, loaded if it is not here; older ones make room."""
        if task_id in self._held:
            self._held.move_to_end(task_id)
            return self._held[task_id][0]
        model = load()
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        self._held[task_id] = (model, size)
        self._bytes += size
        while self._bytes > self._limit and len(self._held) > 1:
            _, (_, freed) = self._held.popitem(last=False)
            self._bytes -= freed
        return model

    def __len__(self) -> int:
        return len(self._held)
