"""Runs tasks in this process: for tests, debuggers and machines without Ray."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wmarena.orchestrator.executors.base import Completion, Executor
from wmarena.orchestrator.plan.task import Failure, FailureKind, Task
from wmarena.orchestrator.worker.attempt import attempt_task
from wmarena.orchestrator.worker.context import Setup, WorkerContext

Perform = Callable[[WorkerContext, Task], Mapping[str, Any] | Failure]


class InlineExecutor(Executor):
    """This process as the only worker. The first Ctrl-C stops its task at the next checkpoint, the second at once.

    Args:
        setup: configuration of the worker context.
        perform: computes one task (replaceable to measure the scheduler alone).
    """

    name = "inline"

    def __init__(self, setup: Setup, perform: Perform = attempt_task) -> None:
        self._setup = setup
        self._perform = perform
        self._context: WorkerContext | None = None
        self._ended: deque[Completion] = deque()
        self._stopping = False

    @property
    def workers(self) -> Sequence[str]:
        return ("inline",)

    def start(self) -> None:
        self._context = WorkerContext(self._setup, cancelled=lambda: self._stopping)

    def idle(self) -> Sequence[str]:
        return () if self._ended else self.workers

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        if self._context is None:
            raise RuntimeError("expected a started executor; use it as a context manager")
        for task in tasks:
            started = time.perf_counter()
            stopped = Failure(FailureKind.CANCELLED, "stopped before it began")
            outcome = stopped if self._stopping else self._perform(self._context, task)
            self._ended.append(Completion(task.id, worker, outcome, time.perf_counter() - started))

    def wait(self, timeout: float) -> list[Completion]:
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def replace(self, worker: str) -> None:
        self.start()

    def announce_stop(self) -> None:
        self._stopping = True

    def cancel(self, patience_s: float) -> list[Completion]:
        return self.wait(0)

    def stop(self) -> None:
        self._context = None
