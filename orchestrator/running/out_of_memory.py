"""What is tried for a task that failed, beside trying it again: a GPU of its own where several workers share one."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from wmarena.orchestrator.executors.base import Executor
from wmarena.orchestrator.plan.task import Failure, FailureKind, Task
from wmarena.orchestrator.running.ledger import Ledger


@dataclass
class WholeGpuQueue:
    """Tasks that ran out of their share of a GPU's memory, until one worker has a GPU for itself and takes them."""

    executor: Executor
    ledger: Ledger
    _waiting: deque[Task] = field(default_factory=deque)
    _reserved: bool = False

    def helps(self, failure: Failure, worker: str) -> bool:
        """True if more of a GPU may be all that was missing."""
        out_of_memory = failure.kind is FailureKind.OUT_OF_MEMORY
        return out_of_memory and self.executor.shares_gpus and not self.executor.has_whole_gpu(worker)

    def hold(self, task: Task) -> None:
        """Keep ``task``, whose attempt is over, for that worker."""
        self.ledger.hold(task.id)
        self._waiting.append(task)

    def pop(self) -> Task | None:
        """The next task for it."""
        return self._waiting.popleft() if self._waiting else None

    def arrange(self) -> Iterator[Task]:
        """Have the GPU cleared while tasks wait, and shared again afterwards; returns tasks for which it cannot be."""
        if not self._waiting and not self._reserved:
            return
        self._reserved = self.executor.reserve_gpu(bool(self._waiting))
        while self._waiting and not self._reserved:
            yield self._waiting.popleft()
