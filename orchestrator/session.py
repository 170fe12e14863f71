"""One execution of a plan: what is finished already, the run in the journal, the loop, the records."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from orchestrator.evidence import Record
from orchestrator.executors.base import Executor, NoWorkers
from orchestrator.journal import Journal
from orchestrator.ledger import Ledger, Policy
from orchestrator.loop import Grow, Interrupted, Limits, Listener, Loop, expected_seconds, with_changed_parents
from orchestrator.plan import Plan
from orchestrator.store import CorruptArtifact, Store
from orchestrator.task import State, TaskId


@dataclass(frozen=True)
class Request:
    """Who asks for what: the run's id, the experiment's name, the spec as text, facts worth keeping."""

    run: str
    experiment: str
    spec: str
    info: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    policy: Policy = "throughput"


def already_done(plan: Plan, store: Store, journal: Journal) -> dict[TaskId, Record]:
    """Records of finished tasks: from the journal, or adopted from artifacts whose journal rows were lost."""
    finished = journal.finished(plan.tasks)
    for task_id in plan.tasks:
        if task_id in finished or not store.has(task_id):
            continue
        try:
            manifest = store.manifest(task_id)
        except CorruptArtifact:
            store.set_aside(task_id)
            continue
        if manifest is not None:
            result = manifest["result"]
            finished[task_id] = Record(
                task_id, State.DONE, result=result, cached=True, seconds=float(result.get("seconds", 0.0)), attempt=1
            )
    return finished


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
        finished = already_done(plan, store, journal)
        ledger = Ledger(plan, finished, store.has, expected_seconds(journal.durations()), request.policy)
        cached = set(ledger.records)
        journal.start_run(request.run, request.experiment, request.spec, request.info, plan, cached)
        _adopt(plan, finished, journal, request.run)
        status = "interrupted"
        try:
            if not ledger.settled:
                with _terminate_as_interrupt(), executor:
                    Loop(plan, ledger, executor, journal, store, request.run, request.limits, listeners, grow).drive()
            failed = any(r.state is not State.DONE for r in ledger.records.values())
            status = "failed" if failed else "done"
        finally:
            journal.finish_run(request.run, status)
    return with_changed_parents(plan, ledger.records)


def _adopt(plan: Plan, finished: Mapping[TaskId, Record], journal: Journal, run: str) -> None:
    """Write rows for artifacts that the journal had lost."""
    known = journal.finished(finished)
    for task_id, record in finished.items():
        if task_id not in known:
            journal.record(run, plan.tasks[task_id], record)
    journal.flush()


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
