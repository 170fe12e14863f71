"""Translates Ray's errors: why a call failed, and whether its worker is lost."""

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from wmarena.orchestrator.files.errors import first_line
from wmarena.orchestrator.plan.task import Failure, FailureKind


def failure_of(error: RayError) -> tuple[Failure, bool]:
    """Return (failure of the call, whether its worker is lost)."""
    if isinstance(error, TaskCancelledError):
        return Failure(FailureKind.CANCELLED, "stopped before it began"), False
    if isinstance(error, RayTaskError):
        return Failure(FailureKind.ERROR, last_line(error), str(error)), False
    return Failure(_cause(error), first_line(error)), True


def _cause(error: RayError) -> FailureKind:
    if isinstance(error, OutOfMemoryError):
        return FailureKind.OUT_OF_MEMORY
    # A live node reports the death of its worker; a broken connection alone does not tell which of the two died.
    lost = isinstance(error, (NodeDiedError, ActorUnavailableError)) or "node has died" in str(error)
    return FailureKind.NODE_LOST if lost else FailureKind.WORKER_DIED


def last_line(error: BaseException) -> str:
    """Return the error's last line, where Ray shows the worker's own error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
