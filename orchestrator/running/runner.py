"""One execution of a plan: finds finished tasks, opens the run in the journal, runs the loop."""

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from wmarena.orchestrator.executors.base import Executor, NoWorkers
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.events import Listener
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.growth import Grow, TaskSource
from wmarena.orchestrator.plan.identity import SEMANTICS
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import State, TaskId
from wmarena.orchestrator.running.durations import expected_seconds
from wmarena.orchestrator.running.ledger import Ledger, Policy
from wmarena.orchestrator.running.loop import STOPPED, Interrupted, Loop
from wmarena.orchestrator.running.resume import already_done, find, with_changed_parents
from wmarena.orchestrator.running.retry import Limits
from wmarena.orchestrator.running.stopping import terminate_as_interrupt
from wmarena.orchestrator.running.store_outage import StoreLost
from wmarena.orchestrator.store.local import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRequest:
    """An execution: its id, spec, limits and policy.

    Attributes:
        run: id of the execution.
        experiment: name of the experiment.
        spec: text of the spec.
        info: facts for the journal.
        retry_quarantined: try quarantined tasks again.
    """

    run: str
    experiment: str
    spec: str
    info: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    policy: Policy = "throughput"
    retry_quarantined: bool = False


def run_plan(
    plan: Plan,
    request: RunRequest,
    *,
    store: Store,
    journal: Journal,
    executor: Executor,
    listeners: Sequence[Listener] = (),
    grow: Grow | None = None,
    held: bool = False,
    source: TaskSource | None = None,
) -> dict[TaskId, Record]:
    """Run the unfinished tasks of ``plan``; the executor is started only if there are any.

    Args:
        held: the caller holds the store's lock.

    Returns:
        Task -> record, for every task of the plan (cached ones included).

    Raises:
        Interrupted: stopped by the user; resumable.
        NoWorkers: resources are missing; resumable.
        StoreLost: the store failed during the run; resumable.
        wmarena.orchestrator.files.errors.StoreBusy: another run holds the store.
    """
    # A shared journal leases tasks, so several drivers may use the store.
    alone = nullcontext() if held else store.joined() if journal.shared else store.exclusive(request.run)
    with alone, _store_errors_end_run():
        found = find(plan.tasks, store, journal)
        _compare_semantics(journal, store, anew=not found.records)
        for task_id in found.damaged:
            store.set_aside(task_id)
        durations = cache(journal.durations)  # read at the first question only: a finished plan asks none
        ledger = Ledger(plan, found.records, store.has, lambda t: expected_seconds(durations())(t), request.policy)
        journal.start_run(request.run, request.experiment, request.spec, request.info, plan, cached=set(ledger.records))
        status = "interrupted"
        try:
            for task_id in found.adopted:
                journal.record(request.run, plan.tasks[task_id], found.records[task_id])
            loop = Loop(
                plan,
                ledger,
                executor,
                journal,
                store,
                request.run,
                request.limits,
                listeners,
                grow,
                source,
                recomputed=dict.fromkeys(found.damaged, 1),
                quarantined={} if request.retry_quarantined else journal.quarantined(),
            )
            _run(loop)
            failed = any(r.state is not State.DONE for r in ledger.records.values())
            status = "failed" if failed else "done"
        finally:
            # Do not hide the cause of the interruption; the next run marks this one as interrupted.
            with suppress(StoreError) if status == "interrupted" else nullcontext():
                journal.finish_run(request.run, status)
    return with_changed_parents(plan, ledger.records)


def _compare_semantics(journal: Journal, store: Store, *, anew: bool) -> None:
    """Warn once per store if results of an earlier version are computed anew."""
    known = journal.semantics()
    if known == SEMANTICS:
        return
    if anew and known is not None and known < SEMANTICS:
        logger.warning(
            "this version computes all tasks in %s anew: task ids cover the names of the code's modules, which moved "
            "to wmarena.*; results of earlier versions stay readable in their reports",
            store.address,
        )
    journal.set_semantics(SEMANTICS)


@contextmanager
def _store_errors_end_run() -> Iterator[None]:
    """Turn store errors inside into StoreLost: the run ends and can be resumed."""
    try:
        yield
    except StoreLost:
        raise
    except StoreError as error:
        raise StoreLost(error) from error


def _run(loop: Loop) -> None:
    """Run the loop; start the executor only if tasks are left. A stop while it starts interrupts the run."""
    try:
        loop.resume()
        if not loop.ledger.settled:
            # Handlers before and after the start: Ray installs its own when it starts.
            stopping = loop.stop.listening(loop.executor.announce_stop, loop.limits.stop_patience_s)
            with _frozen_heap(), terminate_as_interrupt(), loop.executor, stopping:
                loop.drive()
    except KeyboardInterrupt:
        raise Interrupted(STOPPED) from None


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exempt existing objects from garbage collection, which would traverse a large plan repeatedly."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


__all__ = ["Interrupted", "NoWorkers", "RunRequest", "already_done", "run_plan"]
