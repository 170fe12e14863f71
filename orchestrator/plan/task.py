"""One node of the graph. Its id covers what is computed from what; its other fields are hints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType

from wmarena.orchestrator.plan.identity import canonical, digest_text

TaskId = NewType("TaskId", str)
"""Hex SHA-256 of a task's identity."""


class Kind(StrEnum):
    """Kind of computation of a task."""

    TRAIN = "train"
    EMBED = "embed"
    ATTACK = "attack"
    VERIFY = "verify"


class State(StrEnum):
    """State of a task in one run."""

    WAITING = "waiting"  # a parent is not settled
    READY = "ready"  # could run now
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # its own error; ``Failure`` says which
    SKIPPED = "skipped"  # an ancestor failed


@dataclass(frozen=True, slots=True)
class Task:
    """A unit of work.

    Attributes:
        kind: train, embed, attack, verify.
        config: resolved configuration of all plugins involved, defaults included (JSON values).
        seed: the experiment's seed for this cell.
        parents: (role, id) of consumed tasks: "start", "clean", "victim", "suspect", "owner", "claim".
        data: fingerprint of the data set.
        code: digest of the code that computes it.
        label: readable name: ``attack/mtlsign/finetune-ftal/epochs=5/seed0``. Not identity.
        after: tasks to wait for although nothing is consumed from them (a shorter strength of the same trajectory,
            whose checkpoint saves time). Not identity.
        cost: estimated seconds, used until the journal has durations. Not identity.
        workload, scheme, attack: names for tags and statistics. Not identity.
        id: hex SHA-256 over the canonical identity.
        parent_ids: distinct parents, in order.
        waits_for: distinct tasks that must be settled before this one may run: parents, then ``after``.

    Raises:
        TypeError: the configuration holds a value that JSON cannot hold exactly.
    """

    kind: Kind
    config: Mapping[str, Any]
    seed: int
    parents: tuple[tuple[str, TaskId], ...]
    data: str
    code: str
    label: str = ""
    after: tuple[TaskId, ...] = ()
    cost: float = 1.0
    workload: str = ""
    scheme: str = ""
    attack: str = ""
    id: TaskId = field(init=False, repr=False, compare=False)
    parent_ids: tuple[TaskId, ...] = field(init=False, repr=False, compare=False)
    waits_for: tuple[TaskId, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parents = tuple(dict.fromkeys(i for _, i in self.parents))
        waits_for = tuple(dict.fromkeys((*parents, *self.after))) if self.after else parents
        object.__setattr__(self, "parent_ids", parents)
        object.__setattr__(self, "waits_for", waits_for)
        object.__setattr__(self, "id", TaskId(digest_text("task", self.text)))

    def identity(self) -> dict[str, Any]:
        """Return the fields that the id is a digest of."""
        return {
            "kind": self.kind.value,
            "config": dict(self.config),
            "seed": self.seed,
            "parents": sorted(list(p) for p in self.parents),
            "data": self.data,
            "code": self.code,
        }

    @property
    def text(self) -> str:
        """The canonical identity; not cached, because the texts of all tasks would dominate a plan's memory."""
        return canonical(self.identity())

    def parent(self, role: str) -> TaskId:
        """Return the id of the parent in ``role``."""
        return dict(self.parents)[role]


TaskClass = tuple[str, str, str, str]
"""(kind, workload, scheme, attack): tasks of one class take about the same time and memory."""


def task_class(task: Task) -> TaskClass:
    """Return the class of a task."""
    return (task.kind.value, task.workload, task.scheme, task.attack)


class FailureKind(StrEnum):
    """Cause of a failure; decides whether the task is tried again."""

    ERROR = "error"  # an exception of the task: deterministic, not retried
    DIVERGED = "diverged"  # non-finite loss or weights: deterministic, not retried
    WORKER_DIED = "worker_died"  # the process is gone: retried on a new worker
    OUT_OF_MEMORY = "out_of_memory"  # retried
    DEVICE = "device"  # the accelerator's context is unusable: retried on a new worker
    NODE_LOST = "node_lost"  # its machine is lost or unreachable: retried on another, the attempt does not count
    SILENT = "silent"  # the process does not answer (stopped, deadlocked, disconnected): replaced; retried
    STALLED = "stalled"  # the process lives, the task makes no progress: the worker is replaced; retried
    TIMEOUT = "timeout"  # the worker is replaced; retried
    STORE = "store"  # disk full, read-only, network share unreachable: retried once it can be written
    CORRUPT = "corrupt"  # a consumed artifact is damaged: set aside and computed again first
    CANCELLED = "cancelled"  # the run is stopping; not a failure of the task

    @property
    def retryable(self) -> bool:
        """True if another attempt may end differently."""
        return self not in (self.ERROR, self.DIVERGED, self.CORRUPT, self.CANCELLED)


QUARANTINED = "quarantined: "
"""Prefix of the error of a task that later runs do not try again unless asked to."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt.

    Attributes:
        kind: decides about further attempts.
        message: one line.
        trace: traceback.
        damaged: the artifact to compute again, with kind CORRUPT.
    """

    kind: FailureKind
    message: str
    trace: str = field(default="", repr=False)
    damaged: TaskId | None = None

    def line(self) -> str:
        """Return ``kind: message`` for tables."""
        return f"{self.kind.value}: {self.message}"
