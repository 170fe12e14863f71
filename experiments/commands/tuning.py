"""``wmarena tune``: a study, its best trial, and where its report is."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from wmarena.experiments.commands.running import options_of
from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.running.progress import duration
from wmarena.experiments.study.documents import shown
from wmarena.experiments.study.export import write_export
from wmarena.experiments.study.run import StudySummary
from wmarena.experiments.study.run import tune as tune_study
from wmarena.experiments.study.spec import StudySpec

_MOST_SHOWN = 10


def tune(terminal: Terminal, args: Namespace) -> int:
    """Run a study; 0 if all its trials ended with a verdict on them, 1 if some failed."""
    study = StudySpec.load(args.study, overrides=args.overrides, data_root=terminal.data_root)
    for note in study.question.spec.notes:
        terminal.note(note)
    summary = tune_study(
        study,
        trials=args.trials,
        hear=lambda document: terminal.note(trial_line(document)),
        **options_of(terminal, args),
    )
    if args.export and summary.best:
        write_export(study, summary.best[0], Path(args.export))
    if terminal.json:
        document = asdict(summary)
        if summary.shared_report is None:
            del document["shared_report"]
        terminal.document(document)
    else:
        _show(terminal, study, summary)
        if args.export:
            terminal.text(f"spec     {args.export}" if summary.best else "spec     none: no trial keeps every limit")
    return 0 if summary.complete else 1


def trial_line(document: Mapping[str, Any]) -> str:
    """A trial in one line, as it ends."""
    name = document["label"] or f"trial {document['number']}"
    params = ", ".join(f"{path}={shown(value)}" for path, value in document["params"].items())
    values = ", ".join(f"{measure}={value:.4g}" for measure, value in document["values"].items())
    broken = [measure for measure, excess in document["constraints"].items() if excess > 0]
    remark = document["why"] or (f"breaks {', '.join(broken)}" if broken else "")
    return f"{name} {document['state']}: {'; '.join(part for part in (params, values, remark) if part)}"


def _show(terminal: Terminal, study: StudySpec, summary: StudySummary) -> None:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    objectives = [str(asked) for asked in study.objectives]
    for column in ("trial", *study.space, *objectives):
        table.add_column(column, justify="right")
    for found in summary.best[:_MOST_SHOWN]:
        params = [shown(found["params"].get(path)) for path in study.space]
        table.add_row(str(found["number"]), *params, *(f"{found['values'][name]:.4g}" for name in objectives))
    terminal.out.print(table)
    if len(summary.best) > _MOST_SHOWN:
        terminal.text(f"and {len(summary.best) - _MOST_SHOWN} more on the front")
    counts = [f"{getattr(summary, name)} {name}" for name in ("executed", "cached", "failed", "skipped")]
    terminal.text(f"{summary.study}: {summary.trials} trials; {', '.join(counts)} tasks in {duration(summary.seconds)}")
    if summary.busy is not None:
        terminal.text(f"workers  {100 * summary.busy:.0f} % busy")
    terminal.text(f"report   {summary.report}")
    terminal.text(f"trials   {summary.table}")
    terminal.text(f"table    {summary.results}")
    if summary.shared_report is not None:
        terminal.text(f"shared   {summary.shared_report}")
