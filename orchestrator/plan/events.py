"""Events of a running loop, for displays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import Task

EventKind = Literal["started", "stalled", "retried", "done", "failed", "skipped"]
"""``stalled``: the running task has made no progress for half of ``stall_timeout_s``."""


@dataclass(frozen=True)
class Event:
    """A change in the state of a task."""

    kind: EventKind
    task: Task
    worker: str = ""
    record: Record | None = None


Listener = Callable[[Event], None]
"""Called with every event, in order, on the loop's thread; has to return quickly."""
