"""Writes table and report of one run: after it, or rebuilt from the journal and the artifacts alone."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmarena.experiments.report.page import make_page
from wmarena.experiments.report.writers.build import write_report
from wmarena.experiments.results.table import build_rows, calibrated, write_results
from wmarena.experiments.spec.experiment import SHIPPED, ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.reader import JournalReader
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId
from wmarena.orchestrator.store.local import Store

logger = logging.getLogger(__name__)

RunInfo = dict[str, Any]
"""One of ``Journal.runs``."""


@dataclass(frozen=True)
class Pages:
    """Paths of a report: the HTML page, the Parquet table, and the folder in a shared store."""

    report: Path
    results: Path
    shared: str | None = None


def publish(folder: Path, plan: Plan, records: Mapping[TaskId, Record], run: RunInfo, store: Store) -> Pages:
    """Write table and report of a run into ``folder``."""
    with _readable(run["id"]):
        rows = build_rows(plan, records, experiment=run["experiment"], run_id=run["id"])
        folder.mkdir(parents=True, exist_ok=True)
        results = write_results(rows, folder)
        page = make_page(rows, plan, records, run["spec"], run, store, calibrated(plan, records))
        return Pages(write_report(folder, page), results, store.share_report(folder))


@contextmanager
def _readable(run_id: str) -> Iterator[None]:
    """Convert errors from altered files: the evidence was read from disk."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        logger.debug("no report of %s", run_id, exc_info=True)
        raise StoreError(
            f"expected the evidence that a run leaves, got {run_id} with something that no report can be made of "
            f"({type(error).__name__}: {error!s:.200}); if journal and artifacts were not altered, this is a fault "
            "of ours: see --log-level debug"
        ) from error


def rebuild(store: Store, run: RunInfo, journal: JournalReader, out: Path | None = None) -> Pages:
    """Rebuild the report of an earlier run from the store; ``out`` None replaces the report in the store."""
    entries = journal.run_tasks(run["id"])
    cached = {task_id for _, task_id, was_cached, _ in entries if was_cached}
    plan = Plan()
    records: dict[TaskId, Record] = {}
    rows = journal.task_rows(task_id for _, task_id, _, _ in entries)
    with _readable(run["id"]):
        for row in rows:
            task = _task(row)
            if all(parent in plan.tasks for parent in task.parent_ids):
                plan.add([task])
                records[task.id] = _record(row, cached)
        plan.cells += [Cell(**cell) for _, cell in journal.run_cells(run["id"])]
    return publish(out or store.report_dir(run["experiment"], run["id"]), plan, records, run, store)


def _task(row: Mapping[str, Any]) -> Task:
    identity = row["identity"]
    return Task(
        Kind(identity["kind"]),
        identity["config"],
        identity["seed"],
        tuple((role, TaskId(parent)) for role, parent in identity["parents"]),
        data=identity["data"],
        code=identity["code"],
        label=row["label"],
        workload=row["workload"],
        scheme=row["scheme"],
        attack=row["attack"],
    )


def _record(row: Mapping[str, Any], cached: set[TaskId]) -> Record:
    return Record(
        TaskId(row["id"]),
        State(row["state"]),
        result=row["result"],
        error=row["error"],
        cached=row["id"] in cached,
        seconds=row["seconds"],
        attempt=row["attempt"],
        worker=row["worker"],
        caveats=tuple(row["caveats"]),
    )


def find_run(journal: JournalReader, run_id: str) -> RunInfo:
    """Return a run by its id. Raises LookupError."""
    for run in journal.runs():
        if run["id"] == run_id:
            return run
    raise LookupError(f"expected an execution of this store, got {run_id!r}")


def choose_run(journal: JournalReader, run_or_spec: str) -> RunInfo:
    """Return a run by its id, or the newest one of an experiment or of a spec. Raises SpecError."""
    runs = journal.runs()
    named = [run for run in runs if run["id"] == run_or_spec]
    named = named or [run for run in runs if run["experiment"] == run_or_spec]
    if not named and (Path(run_or_spec).is_file() or not runs):
        name = ExperimentSpec.load(SHIPPED.find(run_or_spec)).name
        named = [run for run in runs if run["experiment"] == name]
    if named:
        return named[0]
    known = ", ".join(run["id"] for run in runs[:3]) or "none"
    raise SpecError.of(
        f"expected a run, experiment or spec that this store has run, got {run_or_spec!r}; newest runs: {known}"
    )
