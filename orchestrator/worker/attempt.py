"""One attempt at a task: the one place where an exception becomes a Failure. What a worker calls."""

import errno
import traceback
from typing import Any

import torch

from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan.task import Failure, FailureKind, Task
from wmarena.orchestrator.store.local import CorruptArtifact
from wmarena.orchestrator.worker.context import WorkerContext
from wmarena.orchestrator.worker.evaluation import SMALLER
from wmarena.orchestrator.worker.perform import perform
from wmarena.schemes.base import Cancelled

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ENOSPC", "EDQUOT", "EROFS", "ESTALE", "EAGAIN", "EBUSY", "EMFILE", "ENFILE", "ETIMEDOUT", "EPIPE"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET"),
    )
)
"""What disks and networks do for a while: another attempt may find them well."""


def attempt_task(bench: WorkerContext, task: Task) -> dict[str, Any] | Failure:
    """Perform ``task``; the result is in the store before it is returned.

    Where memory runs out, models are evaluated in smaller batches, from the last checkpoint on; training is as it was.
    """
    outcome = _attempt(bench, task)
    for most in SMALLER:
        if not isinstance(outcome, Failure) or outcome.kind is not FailureKind.OUT_OF_MEMORY:
            break
        outcome = _attempt(bench, task, most)
    return outcome


def _attempt(bench: WorkerContext, task: Task, most_evaluated: int | None = None) -> dict[str, Any] | Failure:
    """One attempt. Exceptions become Failures, here only."""
    try:
        return perform(bench, task, most_evaluated)
    except Cancelled as error:
        return Failure(FailureKind.CANCELLED, _first_line(error))
    except CorruptArtifact as error:
        return Failure(FailureKind.CORRUPT, _first_line(error), damaged=error.task_id)
    except FloatingPointError as error:
        return Failure(FailureKind.DIVERGED, _first_line(error), traceback.format_exc())
    except (torch.OutOfMemoryError, MemoryError) as error:
        bench.release()
        return Failure(FailureKind.OUT_OF_MEMORY, _first_line(error), traceback.format_exc())
    except torch.AcceleratorError as error:
        return Failure(FailureKind.DEVICE, _first_line(error), traceback.format_exc())
    except StoreError as error:
        return Failure(FailureKind.STORE, _first_line(error), traceback.format_exc())
    except OSError as error:
        kind = FailureKind.STORE if error.errno in _PASSING else FailureKind.ERROR
        return Failure(kind, f"{type(error).__name__}: {_first_line(error)}", traceback.format_exc())
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the one place where a task's failure becomes evidence
        return Failure(FailureKind.ERROR, f"{type(error).__name__}: {_first_line(error)}", traceback.format_exc())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
