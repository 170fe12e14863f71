"""A study's files: trials as tables, pictures, and a page of its own. Made from what is remembered of its trials."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wmarena.experiments.results.table import table_csv
from wmarena.experiments.study.documents import TrialDocument
from wmarena.experiments.study.gamma import Statistics
from wmarena.experiments.study.pareto import best_of, directions_of
from wmarena.experiments.study.spec import StudySpec
from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.tuner import Tuner

_FIXED = (
    *("number", "state", "feasible", "why", "warm", "started", "finished", "overhead_s"),
    *("params", "tasks"),
)


@dataclass(frozen=True)
class StudyPages:
    """Where a study's page and its table of trials are."""

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
        confirmed: the default and the best configuration on seeds that no trial used.
        busy: share of the workers' time that tasks took in this run.
    """
    # Loading matplotlib takes longer than planning a trial: commands that draw nothing do not pay for it.
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
    """One row per trial: parameters, values, limits, how it ended; returns the Parquet file."""
    rows = [_row(document, study) for document in documents]
    raw = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema(study)), raw)
    write_whole(folder / "trials.parquet", raw.getvalue().to_pybytes())
    names = [name for name in _schema(study).names if name not in ("params", "tasks")]
    write_whole(folder / "trials.csv", table_csv(names, rows).encode())
    return folder / "trials.parquet"


def _row(document: TrialDocument, study: StudySpec) -> dict[str, Any]:
    row = {name: document.get(name) for name in _FIXED}
    row["params"] = json.dumps(document["params"], sort_keys=True)
    row |= {f"param.{path}": _plain(document["params"].get(path)) for path in study.space}
    row |= {f"value.{asked}": document["values"].get(str(asked)) for asked in study.objectives}
    row |= {f"excess.{limit}": document["constraints"].get(str(limit)) for limit in study.constraints}
    return row


def _schema(study: StudySpec) -> pa.Schema:
    text, real, flag = pa.string(), pa.float64(), pa.bool_()
    kinds: Mapping[str, Any] = {
        "number": pa.int64(),
        "state": text,
        "feasible": flag,
        "why": text,
        "warm": flag,
        "started": real,
        "finished": real,
        "overhead_s": real,
        "params": text,
        "tasks": pa.list_(text),
    }
    searched = [(f"param.{path}", text) for path in study.space]
    values = [(f"value.{asked}", real) for asked in study.objectives]
    limits = [(f"excess.{limit}", real) for limit in study.constraints]
    return pa.schema([*((name, kinds[name]) for name in _FIXED), *searched, *values, *limits])


def _plain(value: Any) -> str | None:
    """A parameter of any type, in a column of text."""
    return value if isinstance(value, str) or value is None else json.dumps(value)
