"""Decides by the cause of a failure whether a task is tried again."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from wmarena.orchestrator.plan.task import QUARANTINED, Failure, FailureKind, TaskId

_MOST_LOST_NODES = 10


@dataclass(frozen=True)
class Limits:
    """Time and attempt limits of a run.

    Attributes:
        task_timeout_s: wall seconds of one attempt.
        max_retries: further attempts after a crash, out-of-memory, timeout or store failure.
        fail_fast: stop the run at the first failed task.
        stop_patience_s: how long a stopping run waits for tasks to reach a checkpoint.
        heartbeat_timeout_s: a worker whose process does not answer for this long is replaced.
        stall_timeout_s: a worker whose task makes no progress for this long is replaced.
        store_patience_s: how long the store may be unwritable before the run stops.
    """

    task_timeout_s: float = 3600.0
    max_retries: int = 2
    fail_fast: bool = False
    stop_patience_s: float = 20.0
    heartbeat_timeout_s: float = 60.0
    stall_timeout_s: float = 1800.0
    store_patience_s: float = 30.0

    @property
    def shortest_s(self) -> float:
        """Shortest time after which a worker may be replaced."""
        return min(self.task_timeout_s, self.heartbeat_timeout_s, self.stall_timeout_s)


class RetryDecision(Enum):
    """What happens to a task after a failed attempt."""

    AGAIN = auto()  # another attempt; this one counts
    FREE = auto()  # another attempt; this one does not count
    OVER = auto()  # the task has failed


@dataclass
class Retries:
    """Counts worker deaths and lost nodes per task, and decides about further attempts."""

    limits: Limits
    _lost_nodes: Counter[TaskId] = field(default_factory=Counter)
    _deaths: Counter[TaskId] = field(default_factory=Counter)

    def decide(self, task_id: TaskId, failure: Failure, *, attempt: int, alone: bool) -> RetryDecision:
        """Decide after attempt ``attempt``; ``alone`` is False if other tasks of its call failed with it."""
        if failure.kind is FailureKind.CANCELLED:
            return RetryDecision.FREE
        if not failure.kind.retryable:
            return RetryDecision.OVER
        if failure.kind is FailureKind.NODE_LOST:
            self._lost_nodes[task_id] += 1
            return RetryDecision.FREE if self._lost_nodes[task_id] <= _MOST_LOST_NODES else RetryDecision.OVER
        if not alone:  # any task of the call may be the cause: each is tried again in a call of its own
            return RetryDecision.FREE
        self._deaths[task_id] += failure.kind is FailureKind.WORKER_DIED
        return RetryDecision.AGAIN if attempt <= self.limits.max_retries else RetryDecision.OVER

    def final_error(self, task_id: TaskId, failure: Failure, attempt: int) -> str:
        """Return the final error; a task that killed its worker in every one of two or more attempts is quarantined."""
        if failure.kind is FailureKind.WORKER_DIED and self._deaths[task_id] == attempt >= 2:
            return (
                f"{QUARANTINED}it killed its worker {attempt} times of {attempt} ({failure.message}); "
                "left alone until `wmarena run --retry-quarantined`"
            )
        return failure.line()
