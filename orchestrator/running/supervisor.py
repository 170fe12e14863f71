"""Decides which busy workers to replace: late, silent, or without progress."""

from wmarena.orchestrator.executors.base import Vitals
from wmarena.orchestrator.plan.task import Failure, FailureKind
from wmarena.orchestrator.running.retry import Limits

_STALLED_FROM = 0.5


def overdue(elapsed_s: float, vitals: Vitals, limits: Limits) -> Failure | None:
    """Return why a worker must be replaced ``elapsed_s`` after its call began, or None."""
    if elapsed_s > limits.task_timeout_s:
        return Failure(FailureKind.TIMEOUT, f"no result after {limits.task_timeout_s:g} s")
    if vitals.silent_s > limits.heartbeat_timeout_s:
        return Failure(FailureKind.SILENT, f"its worker did not answer for {limits.heartbeat_timeout_s:g} s")
    if min(vitals.still_s, elapsed_s) > limits.stall_timeout_s:
        return Failure(FailureKind.STALLED, f"no progress for {limits.stall_timeout_s:g} s")
    return None


def stalled(elapsed_s: float, vitals: Vitals, limits: Limits) -> bool:
    """Return whether half of ``stall_timeout_s`` has passed without progress, so that displays can warn."""
    return min(vitals.still_s, elapsed_s) > _STALLED_FROM * limits.stall_timeout_s
