"""Whether a task is tried again: decided by the cause, within limits."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from wmarena.orchestrator.plan.task import QUARANTINED, Failure, FailureKind, TaskId

_MOST_LOST_NODES = 10


@dataclass(frozen=True)
class Limits:
    """What a task may cost before it is given up.

    Attributes:
        task_timeout_s: wall seconds of one attempt.
        max_retries: further attempts after a crash, out-of-memory, timeout or store hiccup.
        fail_fast: stop the run at the first failed task.
        stop_patience_s: how long a stopping run waits for tasks to reach a checkpoint.
        heartbeat_timeout_s: a worker whose process answers nothing for so long is replaced.
        stall_timeout_s: so is one whose task neither asked nor reported anything for so long.
        store_patience_s: how long a store that cannot be written may take to come back before the run stops.
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
        """The shortest of the times after which a worker is replaced."""
        return min(self.task_timeout_s, self.heartbeat_timeout_s, self.stall_timeout_s)


class RetryDecision(Enum):
    """What becomes of a task after a failed attempt."""

    AGAIN = auto()  # another attempt, and this one counts
    FREE = auto()  # another attempt: this one was nobody's fault
    OVER = auto()


@dataclass
class Retries:
    """Counts what happened to each task and decides what comes next."""

    limits: Limits
    _lost_nodes: Counter[TaskId] = field(default_factory=Counter)
    _deaths: Counter[TaskId] = field(default_factory=Counter)

    def decide(self, task_id: TaskId, failure: Failure, *, attempt: int, alone: bool) -> RetryDecision:
        """After attempt number ``attempt``; ``alone`` is False if it died together with others of its call."""
        if failure.kind is FailureKind.CANCELLED:
            return RetryDecision.FREE
        if not failure.kind.retryable:
            return RetryDecision.OVER
        if failure.kind is FailureKind.NODE_LOST:
            self._lost_nodes[task_id] += 1
            return RetryDecision.FREE if self._lost_nodes[task_id] <= _MOST_LOST_NODES else RetryDecision.OVER
        if not alone:
            return RetryDecision.FREE
        self._deaths[task_id] += failure.kind is FailureKind.WORKER_DIED
        return RetryDecision.AGAIN if attempt <= self.limits.max_retries else RetryDecision.OVER

    def epitaph(self, task_id: TaskId, failure: Failure, attempt: int) -> str:
        """The error of a task that is given up; one that killed every worker it was given, twice or more, is poison."""
        if failure.kind is FailureKind.WORKER_DIED and self._deaths[task_id] == attempt >= 2:
            return (
                f"{QUARANTINED}it killed its worker {attempt} times of {attempt} ({failure.message}); "
                "left alone until `wmarena run --retry-quarantined`"
            )
        return failure.line()
