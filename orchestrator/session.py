"""One execution of a plan: what is finished already, the run in the journal, the loop, the records."""

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import FrameType
from typing import Any

from orchestrator.evidence import Record
from orchestrator.executors.base import Executor, NoWorkers
from orchestrator.journal import Journal
from orchestrator.ledger import Ledger, Policy
from orchestrator.loop import Grow, Interrupted, Limits, Listener, Loop, expected_seconds
from orchestrator.plan import Plan
from orchestrator.resume import already_done, find, with_changed_parents
from orchestrator.store import Store
from orchestrator.task import State, Task, TaskId


@dataclass(frozen=True)
class Request:
    """Who asks for what: the run's id, the experiment's name, the spec as text, facts worth keeping."""

    run: str
    experiment: str
    spec: str
    info: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    policy: Policy = "throughput"


def execute(
    plan: Plan,
    request: Request,
    *,
    store: Store,
    journal: Journal,
    executor: Executor,
    listeners: Sequence[Listener] = (),
    grow: Grow | None = None,
) -> dict[TaskId, Record]:
    """Run what is missing of ``plan``; the executor is started only if anything is.

    Returns:
        Task -> record, for every task of the plan (cached ones included).

    Raises:
        Interrupted: stopped by the user; resumable.
        NoWorkers: resources are not there; resumable.
        orchestrator.store.StoreBusy: another run holds the store.
    """
    with store.exclusive():
        found = find(plan.tasks, store, journal)
        for task_id in found.damaged:
            store.set_aside(task_id)
        ledger = Ledger(plan, found.records, store.has, _lazy_seconds(journal), request.policy)
        journal.start_run(request.run, request.experiment, request.spec, request.info, plan, cached=set(ledger.records))
        status = "interrupted"
        try:
            for task_id in found.adopted:
                journal.record(request.run, plan.tasks[task_id], found.records[task_id])
            loop = Loop(plan, ledger, executor, journal, store, request.run, request.limits, listeners, grow)
            loop.recomputed.update(dict.fromkeys(found.damaged, 1))
            _run(loop)
            failed = any(r.state is not State.DONE for r in ledger.records.values())
            status = "failed" if failed else "done"
        finally:
            journal.finish_run(request.run, status)
    return with_changed_parents(plan, ledger.records)


def _run(loop: Loop) -> None:
    """Start the executor only if there is anything to do; a stop while it starts is a stop like any other."""
    try:
        loop.catch_up()
        if not loop.ledger.settled:
            # Inside as well as outside: Ray installs a handler of its own when it starts.
            with _uncollected(), _terminate_as_interrupt(), loop.executor, _terminate_as_interrupt():
                loop.drive()
    except KeyboardInterrupt:
        raise Interrupted("stopped; finished tasks are kept, the same command resumes") from None


def _lazy_seconds(journal: Journal) -> Callable[[Task], float]:
    """Expected seconds of a task; the journal is asked at the first question, which a finished plan never puts."""
    durations = cache(journal.durations)
    return lambda task: expected_seconds(durations())(task)


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is there now outlives the run: the garbage collector need not walk a large plan again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C: checkpoints are kept. Only the main thread can set this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["Interrupted", "NoWorkers", "Request", "already_done", "execute"]
