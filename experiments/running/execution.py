"""Runs a spec: expands it, executes what is missing, records it, writes table and report.

from wmarena import ExperimentSpec, run

summary = run(ExperimentSpec.load("quickstart"), store="wmarena-store")
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

from wmarena.experiments.planning.expand import expand
from wmarena.experiments.running.context import RunContext, RunOptions, settle_keys
from wmarena.experiments.running.pool import limits_of
from wmarena.experiments.running.reporting import Pages, find_run, publish
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
        shared_report: where others find them, None for a store that is a folder.
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
    """Run what is missing of ``spec``; doing it again runs nothing.

    Args:
        fail_fast: stop at the first failed task.
        retry_quarantined: also try tasks that killed all their workers in an earlier run.
        options: where, with what, and who watches.

    Raises:
        SpecError, MissingData, StoreError: bad input (a passphrase that does not open the store's keys among it), or
            workers that cannot be had; nothing has run.
        StoreBusy: another run holds the store.
        NoWorkers, StoreLost: all workers, or the store, were lost on the way; the same call resumes.
        Interrupted: stopped; the same call resumes.
    """
    started, site = time.monotonic(), RunContext(options)
    expansion = expand(spec, data_root=site.data_root)
    plan, searches = expansion.plan, expansion.searches
    facts = {
        **site.facts(spec),
        "description": spec.description,
        "spec_digest": spec.digest,
        "left_out": list(expansion.left_out),
    }
    limits = limits_of(spec, fail_fast)
    request = RunRequest(site.run_id, spec.name, spec.text, facts, limits, retry_quarantined=retry_quarantined)
    with site.held() as journal:
        cached = set(already_done(plan, site.store, journal))
        open_tasks = [task for task in plan if task.id not in cached]
        if open_tasks:  # a finished plan reads no key
            settle_keys(spec, site.store, cached)
        # A finished plan never asks, so its run need not read every duration there is.
        seconds = expected_seconds(journal.durations() if open_tasks else {})
        folder, n_planned = site.store.report_dir(spec.name, site.run_id), len(plan)
        save_plan(plan, folder, cached)
        executor = site.executor(spec, open_tasks, journal)
        grow = searches if len(searches) else None
        records = site.execute(plan, request, journal, executor, cached=cached, seconds=seconds, grow=grow)
        if len(plan) > n_planned:
            save_plan(plan, folder, cached)
        pages = publish(folder, plan, records, find_run(journal, site.run_id), site.store)
    site.finish()
    return _summary(site.run_id, records, time.monotonic() - started, pages)


def _summary(run_id: str, records: Mapping[TaskId, Record], seconds: float, pages: Pages) -> RunSummary:
    states = states_of(records)
    return RunSummary(
        run_id=run_id,
        executed=states["done"],
        cached=states["cached"],
        failed=states["failed"],
        skipped=states["skipped"],
        seconds=round(seconds, 3),
        report=str(pages.report),
        results=str(pages.results),
        shared_report=pages.shared,
    )


def states_of(records: Mapping[TaskId, Record]) -> Counter[str]:
    """How many tasks ended how: done, cached, failed, skipped."""
    return Counter("cached" if r.cached and r.state is State.DONE else r.state.value for r in records.values())
