"""Runs a spec: expands it, executes the missing tasks, records them, writes table and report.

from wmarena import ExperimentSpec, run

summary = run(ExperimentSpec.load("quickstart"), store="wmarena-store")
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

from wmarena.experiments.planning.expand import expand
from wmarena.experiments.running.context import RunContext, RunOptions, check_keys
from wmarena.experiments.running.pool import limits_of
from wmarena.experiments.running.reporting import find_run, publish
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan_file import save_plan
from wmarena.orchestrator.plan.task import State, TaskId
from wmarena.orchestrator.running.durations import expected_seconds
from wmarena.orchestrator.running.resume import already_done
from wmarena.orchestrator.running.runner import RunRequest


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did. ``executed``, ``cached``, ``failed`` and ``skipped`` add up to the tasks of the plan.

    Attributes:
        report, results: paths of the HTML page and of the Parquet table.
        shared_report: their address in a shared store, None for a local one.
    """

    run_id: str
    executed: int
    cached: int
    failed: int
    skipped: int
    seconds: float
    report: str
    results: str
    shared_report: str | None = None

    @property
    def complete(self) -> bool:
        """True if every task is done."""
        return not self.failed and not self.skipped


def run(
    spec: ExperimentSpec, *, fail_fast: bool = False, retry_quarantined: bool = False, **options: Unpack[RunOptions]
) -> RunSummary:
    """Run the missing tasks of ``spec``; a second call runs nothing.

    Args:
        fail_fast: stop at the first failed task.
        retry_quarantined: also try tasks that killed all their workers in an earlier run.
        options: see ``RunOptions``.

    Raises:
        SpecError, MissingData, StoreError: bad input (also a wrong passphrase), or no workers; nothing has run.
        StoreBusy: another run has locked the store.
        NoWorkers, StoreLost: all workers, or the store, were lost during the run; the same call resumes.
        Interrupted: stopped; the same call resumes.
    """
    started, context = time.monotonic(), RunContext(options)
    expansion = expand(spec, data_root=context.data_root)
    plan, searches = expansion.plan, expansion.searches
    asked = {"description": spec.description, "spec_digest": spec.digest, "left_out": list(expansion.left_out)}
    facts, limits = context.facts(spec, **asked), limits_of(spec, fail_fast)
    request = RunRequest(context.run_id, spec.name, spec.text, facts, limits, retry_quarantined=retry_quarantined)
    with context.locked() as journal:
        cached = set(already_done(plan, context.store, journal))
        open_tasks = [task for task in plan if task.id not in cached]
        if open_tasks:  # a finished plan needs no key
            check_keys(spec, context.store, cached)
        # A finished plan needs no durations: reading all of them is slow in a large journal.
        seconds = expected_seconds(journal.durations() if open_tasks else {})
        folder, n_planned = context.store.report_dir(spec.name, context.run_id), len(plan)
        save_plan(plan, folder, cached)
        executor = context.executor(spec, open_tasks, journal)
        grow = searches if len(searches) else None
        records = context.execute(plan, request, journal, executor, cached=cached, seconds=seconds, grow=grow)
        if len(plan) > n_planned:
            save_plan(plan, folder, cached)
        pages = publish(folder, plan, records, find_run(journal, context.run_id), context.store)
    context.finish()
    return RunSummary(
        run_id=context.run_id,
        **count_states(records),
        seconds=round(time.monotonic() - started, 3),
        report=str(pages.report),
        results=str(pages.results),
        shared_report=pages.shared,
    )


def count_states(records: Mapping[TaskId, Record]) -> dict[str, int]:
    """Count the tasks that were executed, cached, failed and skipped."""
    states = Counter("cached" if r.cached and r.state is State.DONE else r.state.value for r in records.values())
    return {"executed": states["done"], **{name: states[name] for name in ("cached", "failed", "skipped")}}
