"""Markdown notes of an execution and its entries, shown above the metrics."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from wmarena.orchestrator.plan.task import Kind, TaskId
from wmarena.orchestrator.recorders.fields import RelatedRows, RunFields, cut, metrics, relatives
from wmarena.orchestrator.recorders.links import ComparisonLink

RunTask = tuple[int, TaskId, bool, str | None]
"""One of ``Journal.run_tasks``: (position, task, cached, state)."""

_MAX_NOTE = 7900
_MOST_ROWS = 60
_MOST_FAILURES = 10


def entry_note(related: RelatedRows, link: ComparisonLink | None = None) -> str:
    """Describe one entry in a sentence or two."""
    row, found = related.own, metrics(related, link)
    if row["state"] == "failed":
        return f"**Failed:** {cut(row['error'] or 'no cause given', 2000)}"
    if row["kind"] == "verify":
        return _verdict_note(found)
    own = "metric_clean" if row["kind"] == "train" else "metric_marked"
    parts = [f"{name}: {found[key]:.4f}" for name, key in _SHOWN[row["kind"]] if key in found]
    return ", ".join(parts) if own in found else "done"


_SHOWN = {
    "train": (("Metric on test data", "metric_clean"),),
    "embed": (
        ("Metric of the marked model on test data", "metric_marked"),
        ("of its clean twin", "metric_clean"),
        ("mean |Δw|", "covertness_mean_abs_dev"),
    ),
}


def _verdict_note(found: Mapping[str, float]) -> str:
    if "verdict" not in found:
        return "no verdict"
    word = "Watermark found" if found["verdict"] else "Watermark not found"
    parts = [f"**{word}**: log10 p = {found['log10_p']:.1f}"]
    parts.append(f"statistic {found['statistic']:.3f}, passes from {found['threshold']:.3f}")
    if "relative_drop" in found:
        parts.append(f"metric {found['metric_marked']:.4f} → {found['metric_suspect']:.4f}")
    return "; ".join(parts) + "."


def execution_note(
    run: Mapping[str, Any],
    tasks: Sequence[RunTask],
    rows: Mapping[TaskId, RunFields],
    links: Mapping[TaskId, ComparisonLink],
) -> str:
    """Describe an execution: state, failures, short table, counts; the most important comes first.

    Args:
        run: one of ``Journal.runs``.
        tasks: ``Journal.run_tasks``.
        rows: rows of all its settled tasks and their ancestors.
        links: comparisons of verify tasks.
    """
    description = str(run["info"].get("description") or "").strip()
    head = ", ".join(f"{n} {name}" for name, n in count_states(tasks).items() if n)
    verdicts = _verdicts(tasks, rows, links)
    parts = [description, f"**Tasks:** {head}", _failures(tasks, rows), verdicts, _counts(tasks, rows)]
    return cut("\n\n".join(p for p in parts if p), _MAX_NOTE)


def count_states(tasks: Iterable[RunTask]) -> dict[str, int]:
    """Count an execution's tasks: done (by this execution), cached, failed, skipped, open."""
    found = Counter("cached" if cached else state or "open" for _, _, cached, state in tasks)
    return {name: found[name] for name in ("done", "cached", "failed", "skipped", "open")}


def _counts(tasks: Sequence[RunTask], rows: Mapping[TaskId, RunFields]) -> str:
    """Return a table of states by kind; tasks that were never settled have no kind in the journal."""
    of_kind: dict[str, list[RunTask]] = defaultdict(list)
    for task in tasks:
        of_kind[rows[task[1]]["kind"] if task[1] in rows else "not reached"].append(task)
    names = [n for n in (*[k.value for k in Kind], "not reached") if n in of_kind]
    lines = [[name, *(str(n or "–") for n in count_states(of_kind[name]).values())] for name in names]
    return _table(["", "done", "reused", "failed", "skipped", "open"], lines)


def _verdicts(
    tasks: Sequence[RunTask], rows: Mapping[TaskId, RunFields], links: Mapping[TaskId, ComparisonLink]
) -> str:
    groups: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    for _, task_id, _, state in tasks:
        row = rows.get(task_id)
        if state == "done" and row is not None and row["kind"] == "verify" and row["state"] == "done":
            link = links.get(task_id)
            related = relatives(row, rows, link)
            groups[_cell_name(row, link)].append(metrics(related, link))
    lines = [[*name, *_judged(found)] for name, found in groups.items()]
    if len(lines) > _MOST_ROWS:
        lines = [*lines[:_MOST_ROWS], [f"… and {len(lines) - _MOST_ROWS} more", *[""] * 5]]
    return _table(["workload", "scheme", "attack", "found", "median log10 p", "mean drop"], lines)


def _cell_name(row: RunFields, link: ComparisonLink | None) -> tuple[str, str, str]:
    config = row["identity"]["config"]
    attack = f"control: {config['control']}" if config.get("control") else row["attack"]
    if link is not None and link.strength is not None:
        attack += f" {link.strength_name}={link.strength:g}"
    attack += " (owner's head)" if config.get("head") == "original" else ""
    attack += " (adversary's claim)" if config.get("claim") else ""
    return row["workload"], row["scheme"], attack


def _judged(found: Sequence[Mapping[str, float]]) -> Iterator[str]:
    verdicts = [m["verdict"] for m in found if "verdict" in m]
    drops = [m["relative_drop"] for m in found if "relative_drop" in m]
    yield f"{sum(verdicts):.0f}/{len(verdicts)}"
    yield f"{median(m['log10_p'] for m in found if 'log10_p' in m):.1f}" if verdicts else "–"
    yield f"{100 * fmean(drops):.1f} %" if drops else "–"


def _failures(tasks: Sequence[RunTask], rows: Mapping[TaskId, RunFields]) -> str:
    failed = [rows[t] for _, t, _, state in tasks if state == "failed" and t in rows]
    lines = [f"- `{row['label']}`: {cut(row['error'] or '', 200)}" for row in failed[:_MOST_FAILURES]]
    more = [f"- … and {len(failed) - _MOST_FAILURES} more"] if len(failed) > _MOST_FAILURES else []
    return "\n".join(["**Failed**", "", *lines, *more]) if failed else ""


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    if not body:
        return ""
    return "\n".join(f"| {line} |" for line in [" | ".join(head), " | ".join("---" for _ in head), *body])
