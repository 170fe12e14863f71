"""One attempt at a task; the only place where an exception becomes a Failure."""

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
"""Errors of disks and networks that may pass: another attempt may succeed."""


def attempt_task(context: WorkerContext, task: Task) -> dict[str, Any] | Failure:
    """Perform ``task``; its artifact is committed before the result is returned.

    If memory runs out, resume from the last checkpoint with smaller evaluation batches; training batches stay.
    """
    outcome = _attempt(context, task)
    for most in SMALLER:
        if not isinstance(outcome, Failure) or outcome.kind is not FailureKind.OUT_OF_MEMORY:
            break
        outcome = _attempt(context, task, most)
    return outcome


def _attempt(context: WorkerContext, task: Task, most_evaluated: int | None = None) -> dict[str, Any] | Failure:
    try:
        return perform(context, task, most_evaluated)
    except Cancelled as error:
        return Failure(FailureKind.CANCELLED, _first_line(error))
    except CorruptArtifact as error:
        return Failure(FailureKind.CORRUPT, _first_line(error), damaged=error.task_id)
    except FloatingPointError as error:
        return Failure(FailureKind.DIVERGED, _first_line(error), traceback.format_exc())
    except (torch.OutOfMemoryError, MemoryError) as error:
        context.release()
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
