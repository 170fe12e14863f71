"""``wmarena run`` and ``wmarena report``."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmarena.experiments.commands.terminal import NO_RECORDS, Terminal
from wmarena.experiments.report.writers.terminal import summary_lines, summary_table
from wmarena.experiments.results.table import read_results
from wmarena.experiments.running.context import RunOptions
from wmarena.experiments.running.execution import RunSummary
from wmarena.experiments.running.execution import run as run_spec
from wmarena.experiments.running.pool import Pool
from wmarena.experiments.running.progress import duration, lines, live
from wmarena.experiments.running.reporting import Pages, choose_run, rebuild
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.files.addresses import resolve, shown
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.store.local import Store

if TYPE_CHECKING:
    from wmarena.experiments.study.run import StudySummary


def options_of(terminal: Terminal, args: Namespace) -> RunOptions:
    """Read the options of ``run`` and ``tune`` from a command line."""
    recorded = terminal.tracking_uri != NO_RECORDS
    return {
        "store": terminal.store,
        "keys": terminal.keys,
        "journal_url": terminal.journal_url,
        "data_root": terminal.data_root,
        "tracking_uri": terminal.tracking_uri if recorded else None,
        "record": recorded,
        "pool": Pool(
            executor=args.executor, address=args.address, workers=args.workers, gpus_per_worker=args.gpus_per_worker
        ),
        "waiting": (lambda text: terminal.note(f"wmarena: {text}")) if args.wait else None,
        "watch": partial(live if terminal.err.is_terminal else lines, terminal.err),
    }


def run(terminal: Terminal, args: Namespace) -> int:
    """Run a spec; 0 if every task is done, 1 if some failed."""
    spec = ExperimentSpec.load(args.spec, overrides=args.overrides, data_root=terminal.data_root)
    for note in spec.notes:
        terminal.note(note)
    options = options_of(terminal, args)
    summary = run_spec(spec, fail_fast=args.fail_fast, retry_quarantined=args.retry_quarantined, **options)
    if terminal.json:
        terminal.summary(summary)
    else:
        _show(terminal, summary)
    return 0 if summary.complete else 1


def counts_text(summary: "RunSummary | StudySummary") -> str:
    """Format the counts of a run's or study's tasks."""
    return ", ".join(f"{getattr(summary, name)} {name}" for name in ("executed", "cached", "failed", "skipped"))


def _show(terminal: Terminal, summary: RunSummary) -> None:
    rows = read_results(Path(summary.results))
    terminal.out.print(summary_table(rows, terminal.open_store()))
    for line in summary_lines(rows):
        terminal.out.print(line, markup=False)
    terminal.text(f"{summary.run_id}: {counts_text(summary)} in {duration(summary.seconds)}")
    terminal.paths(report=summary.report, table=summary.results, shared=summary.shared_report)
    if terminal.tracking_uri != NO_RECORDS:
        where = shown(resolve(terminal.tracking_uri, terminal.open_store().root))
        terminal.paths(records=f"{where}  (wmarena ui)")


def report(terminal: Terminal, args: Namespace) -> int:
    """Rebuild a report from the journal and the artifacts; with --sync, send missing records to MLflow."""
    store = terminal.open_store()
    if not terminal.has_journal(store):
        raise SpecError.of(_unknown(store))
    if args.run_or_spec is None:
        return _sync_all(terminal, store, args)
    with terminal.journal(store) as journal:
        chosen = choose_run(journal, args.run_or_spec)
        out = Path(args.out) if args.out else None
        of_study = bool(chosen["info"].get("study"))
        pages = _study_pages(store, journal, chosen, out) if of_study else rebuild(store, chosen, journal, out)
    warning = _sync(terminal, store, [chosen["id"]]) if args.sync else None
    if terminal.json:
        terminal.document({"report": str(pages.report), "results": str(pages.results)})
    else:
        terminal.paths(report=str(pages.report), table=str(pages.results))
    if warning:
        terminal.note(f"wmarena: {warning}")
    return 3 if warning else 0


def _study_pages(store: Store, journal: Journal, run: Mapping[str, Any], out: Path | None) -> Pages:
    # Imported here: Optuna takes a second to load.
    from wmarena.experiments.study.run import republish

    found = republish(store, journal, run, out)
    return Pages(found.report, found.table)


def _unknown(store: Store) -> str:
    if store.shared:
        return (
            f"expected a run that this machine knows, got {store.address}, on which it has run nothing; "
            "`wmarena run SPEC` finds what is finished there and writes the report"
        )
    return f"expected a store that has run something, got {store.root}; pass --store DIR"


def _sync_all(terminal: Terminal, store: Store, args: Namespace) -> int:
    """Send the missing records of every run to MLflow, oldest first (``report --sync`` without a run)."""
    if not args.sync or args.out:
        raise SpecError.of("expected RUN_OR_SPEC, got none; name one, or send all runs by `report --sync` alone")
    with terminal.journal(store) as journal:
        runs = [run["id"] for run in reversed(journal.runs())]
    warning = _sync(terminal, store, runs)
    if terminal.json:
        terminal.document({"runs": runs, "complete": warning is None})
    if warning:
        terminal.note(f"wmarena: {warning}")
    return 3 if warning else 0


def _sync(terminal: Terminal, store: Store, runs: Sequence[str]) -> str | None:
    """Send the missing records of ``runs`` to MLflow; return the reason if some could not be sent."""
    # Imported here: MLflow takes seconds to load.
    from wmarena.orchestrator.recorders.mlflow import MlflowRecorder

    if terminal.tracking_uri == NO_RECORDS:
        return "expected a tracking URI for --sync, got none"
    sent = present = 0
    with terminal.journal(store) as journal:
        recorder = MlflowRecorder(store, journal, terminal.tracking_uri)
        for run_id in runs:
            found = recorder.sync(run_id)
            sent, present = sent + found.sent, present + found.present
            if found.warning is not None:
                break
    terminal.note(f"sent {sent} entries to MLflow, {present} were there")
    return found.warning if runs else None
