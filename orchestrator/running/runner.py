"""One execution of a plan: what is finished already, the run in the journal, the loop, the records."""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from wmarena.orchestrator.plan.task import State, Task, TaskId
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
    """Who asks for what.

    Attributes:
        run: id of the execution.
        experiment: its name.
        spec: as text.
        info: facts worth keeping.
        retry_quarantined: try tasks again that killed all their workers in an earlier run.
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
    """Run what is missing of ``plan``; the executor is started only if anything is.

    Args:
        held: the caller holds the store already.

    Returns:
        Task -> record, for every task of the plan (cached ones included).

    Raises:
        Interrupted: stopped by the user; resumable.
        NoWorkers: resources are not there; resumable.
        StoreLost: the store failed on the way; resumable.
        wmarena.orchestrator.files.errors.StoreBusy: another run holds the store.
    """
    # Where the journal keeps drivers apart, they may share the store.
    alone = nullcontext() if held else store.joined() if journal.shared else store.exclusive(request.run)
    with alone, _store_needed():
        found = find(plan.tasks, store, journal)
        _compare_semantics(journal, store, anew=not found.records)
        for task_id in found.damaged:
            store.set_aside(task_id)
        ledger = Ledger(plan, found.records, store.has, _lazy_seconds(journal), request.policy)
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
            # Why it was interrupted must not be hidden; the next run notes that it was.
            with suppress(StoreError) if status == "interrupted" else nullcontext():
                journal.finish_run(request.run, status)
    return with_changed_parents(plan, ledger.records)


def _compare_semantics(journal: Journal, store: Store, *, anew: bool) -> None:
    """Tell, once per store, why an earlier version's results are not found; nobody should look for a fault."""
    known = journal.semantics()
    if known == SEMANTICS:
        return
    if anew and known is not None and known < SEMANTICS:
        logger.warning(
            "this version computes all tasks in %s anew: task ids cover the names of the code's modules, which moved "
            "to wmarena.*; results of earlier versions stay readable in their reports",
            store.address,
        )
    journal.note_semantics(SEMANTICS)


@contextmanager
def _store_needed() -> Iterator[None]:
    """Trouble with the store from here on is no bad input: it ends the run, which can be resumed."""
    try:
        yield
    except StoreLost:
        raise
    except StoreError as error:
        raise StoreLost(error) from error


def _run(loop: Loop) -> None:
    """Start the executor only if there is anything to do; a stop while it starts is a stop like any other."""
    try:
        loop.catch_up()
        if not loop.ledger.settled:
            # Inside as well as outside: Ray installs a handler of its own when it starts.
            stopping = loop.stop.listening(loop.executor.announce_stop, loop.limits.stop_patience_s)
            with _uncollected(), terminate_as_interrupt(), loop.executor, stopping:
                loop.drive()
    except KeyboardInterrupt:
        raise Interrupted(STOPPED) from None


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


__all__ = ["Interrupted", "NoWorkers", "RunRequest", "already_done", "run_plan"]
