"""``wmarena tune``: run a study, show its best trial and its report."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from wmarena.experiments.commands.running import counts_text, options_of
from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.running.progress import duration
from wmarena.experiments.study.documents import shown
from wmarena.experiments.study.export import write_export
from wmarena.experiments.study.run import StudySummary
from wmarena.experiments.study.run import tune as tune_study
from wmarena.experiments.study.spec import StudySpec

_MOST_SHOWN = 10


def tune(terminal: Terminal, args: Namespace) -> int:
    """Run a study; 0 if no trial failed, else 1."""
    study = StudySpec.load(args.study, overrides=args.overrides, data_root=terminal.data_root)
    for note in study.question.spec.notes:
        terminal.note(note)
    summary = tune_study(
        study,
        trials=args.trials,
        on_trial_end=lambda document: terminal.note(trial_line(document)),
        **options_of(terminal, args),
    )
    if args.export and summary.best:
        write_export(study, summary.best[0], Path(args.export))
    if terminal.json:
        terminal.summary(summary)
    else:
        _show(terminal, study, summary)
        if args.export:
            terminal.paths(spec=args.export if summary.best else "none: no trial keeps every limit")
    return 0 if summary.complete else 1


def trial_line(document: Mapping[str, Any]) -> str:
    """Format a trial that has ended in one line."""
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
    head = f"{summary.study}: {summary.trials} trials; {counts_text(summary)} tasks"
    terminal.text(f"{head} in {duration(summary.seconds)}")
    busy = None if summary.busy is None else f"{100 * summary.busy:.0f} % busy"
    terminal.paths(workers=busy, report=summary.report, trials=summary.table, table=summary.results)
    terminal.paths(shared=summary.shared_report)
