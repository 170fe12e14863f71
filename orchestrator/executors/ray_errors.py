"""What Ray's errors say of a call: why it failed, and whether its worker is lost."""

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from wmarena.orchestrator.plan.task import Failure, FailureKind


def failure_of(error: RayError) -> tuple[Failure, bool]:
    """(what a call that Ray gave up ended with, whether the worker is lost)."""
    if isinstance(error, TaskCancelledError):
        return Failure(FailureKind.CANCELLED, "stopped before it began"), False
    if isinstance(error, RayTaskError):
        return Failure(FailureKind.ERROR, last_line(error), str(error)), False
    return Failure(_cause(error), first_line(error)), True


def _cause(error: RayError) -> FailureKind:
    if isinstance(error, OutOfMemoryError):
        return FailureKind.OUT_OF_MEMORY
    # Of a worker that died on a machine that lives, that machine tells; a broken connection alone tells of neither.
    lost = isinstance(error, (NodeDiedError, ActorUnavailableError)) or "node has died" in str(error)
    return FailureKind.NODE_LOST if lost else FailureKind.WORKER_DIED


def first_line(error: BaseException) -> str:
    """What the error says, without what Ray adds below."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Where Ray shows the worker's own error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
