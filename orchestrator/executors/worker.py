"""A worker process: performs tasks on one device and tracks their progress."""

import importlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from wmarena.orchestrator.executors.inline import Perform
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan.task import Failure, FailureKind, Task
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.opening import open_store
from wmarena.orchestrator.worker.context import Setup, WorkerContext


class Worker:
    """Owns one device with its resident data and models; performs tasks and decides nothing.

    Args:
        setup: configuration of the worker context.
        perform: "module:function" that computes one task.
        environment: variables of this process, set before the device is initialised.
        cancelled: True once the running task should stop.

    Raises:
        StoreError: this machine does not see the store.
    """

    def __init__(self, setup: Setup, perform: str, environment: dict[str, str], cancelled: Callable[[], bool]) -> None:
        os.environ.update(environment)
        _check_shared(open_store(setup.store, setup.keys))
        module, _, function = perform.partition(":")
        self._perform: Perform = getattr(importlib.import_module(module), function)
        self._cancelled = cancelled
        self._context = WorkerContext(setup, cancelled=self._poll_cancelled)
        self._progress = time.monotonic()

    def still_s(self) -> float:
        """Return the seconds since the running task began, offered a checkpoint or polled for cancellation."""
        return time.monotonic() - self._progress

    def _poll_cancelled(self) -> bool:
        self._progress = time.monotonic()
        return self._cancelled()

    def perform(self, tasks: Sequence[Task]) -> list[tuple[Any, float]]:
        """Return (outcome, seconds) of each task, in order; once the device is lost, the rest is not tried."""
        out: list[tuple[Any, float]] = []
        for task in tasks:
            if out and is_lost(out[-1][0]):
                untried = Failure(FailureKind.CANCELLED, "the device was lost before it began")
                out += [(untried, 0.0)] * (len(tasks) - len(out))
                break
            self._progress = time.monotonic()
            started = time.perf_counter()
            out.append((self._perform(self._context, task), time.perf_counter() - started))
        return out


def is_lost(outcome: Any) -> bool:
    """Return whether the worker's accelerator has become unusable."""
    return isinstance(outcome, Failure) and outcome.kind is FailureKind.DEVICE


def _check_shared(store: Store) -> None:
    """Refuse a store folder that this machine does not see: results in a new local folder would be lost."""
    if not store.shared and not (store.root / "artifacts").is_dir():
        raise StoreError(
            f"expected the store {store.address} on every node, got a node without it; "
            "mount a shared file system there and pass its path with --store, or the URL of a shared store"
        )
