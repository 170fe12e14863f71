"""What a loop says while it runs: for displays."""

from dataclasses import dataclass
from typing import Literal, Protocol

from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import Task

EventKind = Literal["started", "stalled", "retried", "done", "failed", "skipped"]
"""``stalled``: the task under way has made no progress for half the time after which its worker is replaced."""


@dataclass(frozen=True)
class Event:
    """Something happened to a task."""

    kind: EventKind
    task: Task
    worker: str = ""
    record: Record | None = None


class Listener(Protocol):
    """Hears every event, in order, on the loop's thread: be quick."""

    def __call__(self, event: Event) -> None: ...
