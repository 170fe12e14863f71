"""What a worker process does with the tasks that it is given; whoever runs the process says how it hears of a stop."""

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
    """Owns one device and its resident data and models; performs what it is given, decides nothing.

    Args:
        setup: what the workbench needs.
        perform: "module:function" that computes one task.
        environment: variables of this process, set before the device is touched.
        cancelled: True once the task under way should stop.

    Raises:
        StoreError: the store is not on this machine.
    """

    def __init__(self, setup: Setup, perform: str, environment: dict[str, str], cancelled: Callable[[], bool]) -> None:
        os.environ.update(environment)
        _check_shared(open_store(setup.store, setup.keys))
        module, _, function = perform.partition(":")
        self._perform: Perform = getattr(importlib.import_module(module), function)
        self._cancelled = cancelled
        self._bench = WorkerContext(setup, cancelled=self._asked)
        self._progress = time.monotonic()

    def still_s(self) -> float:
        """Seconds since the task under way began, offered a checkpoint or asked whether to stop."""
        return time.monotonic() - self._progress

    def _asked(self) -> bool:
        self._progress = time.monotonic()
        return self._cancelled()

    def perform(self, tasks: Sequence[Task]) -> list[tuple[Any, float]]:
        """(outcome, seconds) of each task, in order; after the device is lost, the rest has not been tried."""
        out: list[tuple[Any, float]] = []
        for task in tasks:
            if out and is_lost(out[-1][0]):
                untried = Failure(FailureKind.CANCELLED, "the device was lost before it began")
                out += [(untried, 0.0)] * (len(tasks) - len(out))
                break
            self._progress = time.monotonic()
            started = time.perf_counter()
            out.append((self._perform(self._bench, task), time.perf_counter() - started))
        return out


def is_lost(outcome: Any) -> bool:
    """True if the worker's accelerator cannot be used any more."""
    return isinstance(outcome, Failure) and outcome.kind is FailureKind.DEVICE


def _check_shared(store: Store) -> None:
    """A folder that is not shared would be made anew here, and its results found by nobody."""
    if not store.shared and not (store.root / "artifacts").is_dir():
        raise StoreError(
            f"expected the store {store.address} on every node, got a node without it; "
            "mount a shared file system there and pass its path with --store, or the URL of a shared store"
        )
