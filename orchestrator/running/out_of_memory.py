"""Tasks that ran out of memory on a shared GPU get a whole GPU."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from wmarena.orchestrator.executors.base import Executor
from wmarena.orchestrator.plan.task import Failure, FailureKind, Task
from wmarena.orchestrator.running.ledger import Ledger


@dataclass
class WholeGpuQueue:
    """Tasks that exceeded their share of a GPU's memory, waiting for a worker with a whole GPU."""

    executor: Executor
    ledger: Ledger
    _waiting: deque[Task] = field(default_factory=deque)
    _reserved: bool = False

    def helps(self, failure: Failure, worker: str) -> bool:
        """Return whether a whole GPU may prevent this failure."""
        out_of_memory = failure.kind is FailureKind.OUT_OF_MEMORY
        return out_of_memory and self.executor.shares_gpus and not self.executor.has_whole_gpu(worker)

    def hold(self, task: Task) -> None:
        """Queue ``task``, whose attempt has ended, for that worker."""
        self.ledger.hold(task.id)
        self._waiting.append(task)

    def pop(self) -> Task | None:
        """Return the next task for that worker, or None."""
        return self._waiting.popleft() if self._waiting else None

    def arrange(self) -> Iterator[Task]:
        """Reserve a GPU while tasks wait, and share it again afterwards; yield tasks if none can be reserved."""
        if not self._waiting and not self._reserved:
            return
        self._reserved = self.executor.reserve_gpu(bool(self._waiting))
        while self._waiting and not self._reserved:
            yield self._waiting.popleft()
