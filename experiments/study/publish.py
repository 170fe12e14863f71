"""Writes a study's files from its trials' documents: tables, figures, and a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from wmarena.experiments.results.table import table_csv, write_parquet
from wmarena.experiments.study.documents import TrialDocument
from wmarena.experiments.study.gamma import Statistics
from wmarena.experiments.study.pareto import best_of, directions_of
from wmarena.experiments.study.spec import StudySpec
from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.tuner import Tuner

_FIXED = {
    "number": pa.int64(),
    "state": pa.string(),
    "feasible": pa.bool_(),
    "why": pa.string(),
    "warm": pa.bool_(),
    "started": pa.float64(),
    "finished": pa.float64(),
    "overhead_s": pa.float64(),
    "params": pa.string(),
    "tasks": pa.list_(pa.string()),
}


@dataclass(frozen=True)
class StudyPages:
    """Paths of a study's page and of its table of trials."""

    report: Path
    table: Path


def publish(
    folder: Path,
    study: StudySpec,
    documents: Sequence[TrialDocument],
    confirmed: Sequence[TrialDocument],
    tuner: Tuner,
    busy: float | None = None,
) -> StudyPages:
    """Write ``trials.parquet``, ``trials.csv``, ``figures/``, ``report.html`` and ``report.md``.

    Args:
        documents: trials that have ended, by number.
        confirmed: the default and the best configuration on fresh seeds.
        busy: share of the workers' time that tasks took in this run.
    """
    # Imported here: matplotlib loads slowly, and most commands draw nothing.
    from wmarena.experiments.study.figures import study_figures
    from wmarena.experiments.study.page import make_page

    folder.mkdir(parents=True, exist_ok=True)
    directions = directions_of(study)
    importance = {name: tuner.importance(number) for number, name in enumerate(directions)}
    best = best_of(documents, study)
    statistics = Statistics.of(best["statistics"]) if best is not None else None
    figures = study_figures(folder / "figures", documents, directions, study.space, importance, statistics)
    table = write_trials(documents, study, folder)
    write_whole(folder / "study.yaml", study.text.encode())
    page = make_page(study, documents, confirmed, importance, [f for f in figures if f.suffix == ".svg"], busy)
    write_whole(folder / "report.html", page.html().encode())
    write_whole(folder / "report.md", page.markdown().encode())
    return StudyPages(folder / "report.html", table)


def write_trials(documents: Sequence[TrialDocument], study: StudySpec, folder: Path) -> Path:
    """Write one row per trial with parameters, values, limits and state; return the Parquet file."""
    rows = [_row(document, study) for document in documents]
    schema = _schema(study)
    names = [name for name in schema.names if name not in ("params", "tasks")]
    write_whole(folder / "trials.csv", table_csv(names, rows).encode())
    return write_parquet(folder / "trials.parquet", rows, schema)


def _row(document: TrialDocument, study: StudySpec) -> dict[str, Any]:
    row = {name: document.get(name) for name in _FIXED}
    row["params"] = json.dumps(document["params"], sort_keys=True)
    row |= {f"param.{path}": _plain(document["params"].get(path)) for path in study.space}
    row |= {f"value.{asked}": document["values"].get(str(asked)) for asked in study.objectives}
    row |= {f"excess.{limit}": document["constraints"].get(str(limit)) for limit in study.constraints}
    return row


def _schema(study: StudySpec) -> pa.Schema:
    searched = [(f"param.{path}", pa.string()) for path in study.space]
    values = [(f"value.{asked}", pa.float64()) for asked in study.objectives]
    limits = [(f"excess.{limit}", pa.float64()) for limit in study.constraints]
    return pa.schema([*_FIXED.items(), *searched, *values, *limits])


def _plain(value: Any) -> str | None:
    """Format a parameter of any type for a text column."""
    return value if isinstance(value, str) or value is None else json.dumps(value)
