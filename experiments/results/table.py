"""The results table: one row per verify task, built from a plan and its records alone.

Unknown numbers are null, never a sentinel. Only ``removed`` tells whether a mark was removed: verdict 0, an accuracy
drop within the adversary's budget, and a suspect better than the model trained from scratch on the adversary's data.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq

from wmarena.experiments.results.calibration import CONTROL, Calibration, calibrations
from wmarena.experiments.results.caveats import CaveatInputs, raised_caveats
from wmarena.experiments.results.rows import COLUMN_TYPES, UNREACHED, ResultRow
from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.plan.evidence import COVERTNESS, Record, suspect_metric
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.plugins import UnknownName, build
from wmarena.orchestrator.plan.task import State, TaskId
from wmarena.schemes.params import ConfigError

Columns = dict[str, Any]
"""Some columns of a row."""

_TEXT = pa.string()
_ARROW = {
    str: _TEXT,
    TaskId: _TEXT,
    Literal: _TEXT,
    tuple: pa.list_(_TEXT),
    float: pa.float64(),
    int: pa.int64(),
    bool: pa.bool_(),
}


def _arrow_type(hint: Any) -> pa.DataType:
    """Return the Parquet type of a field: ``str | None`` and literals are text, tuples are lists of text."""
    parts = get_args(hint)
    (plain,) = (part for part in parts if part is not NoneType) if NoneType in parts else (hint,)
    return _ARROW[get_origin(plain) or plain]


RESULTS_SCHEMA = pa.schema([(name, _arrow_type(hint)) for name, hint in COLUMN_TYPES.items()])
"""Columns and types of ``results.parquet``: those of ``ResultRow``."""

SCRATCH_MARGIN = 0.005
"""How much better than training from scratch a suspect must be for its removal to count: half a point."""

_ACCESS = {"black": "queries", "white": "weights"}
_STATUS = {State.DONE: "done", State.FAILED: "failed"}
_FROM_VERDICT = (
    *("statistic", "n", "null_q", "threshold", "level", "log10_p", "log10_p_adj"),
    *("p_method", "verdict", "verdict_paper", "margin"),
)


def build_rows(
    plan: Plan | Iterable[Cell], records: Mapping[TaskId, Record], *, experiment: str, run_id: str
) -> list[ResultRow]:
    """Build one row per verify task, in planning order.

    Args:
        plan: the plan, or its cells (without the workloads' configurations).
        records: of tasks that have ended; a task without one counts as skipped.
    """
    tasks = plan.tasks if isinstance(plan, Plan) else {}
    listed = plan.cells if isinstance(plan, Plan) else plan
    cells = {cell.verify: cell for cell in listed if cell.control != CONTROL}
    rows = []
    for cell in cells.values():
        trained = tasks.get(cell.clean)
        workload = canonical(dict(trained.config["workload"])) if trained is not None else None
        head = {"experiment": experiment, "run_id": run_id, "workload_params": workload}
        rows.append(_row(cell, records, head))
    sources = {cell.verify: [records[t] for t in _tasks(cell) if t in records] for cell in cells.values()}
    rows = _in_order(rows)
    wrong = {c.victim for c in calibrated(plan, records) if c.mismatch}
    caveats = raised_caveats(CaveatInputs(rows=rows, sources=sources, miscalibrated=wrong))
    return [replace(row, caveats=found) if (found := caveats[row.task_id]) else row for row in rows]


def _in_order(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Sort rows as planned, then searched ones by victim and strength, because they join in random order."""
    first: dict[tuple[Any, ...], int] = {}
    keys = []
    for number, row in enumerate(rows):
        group = row.victim, row.seed, row.setting
        first.setdefault(group, number)
        keys.append((True, first[group], row.strength) if row.searched else (False, number, 0.0))
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (*keys[i], i))]


def calibrated(plan: Plan | Iterable[Cell], records: Mapping[TaskId, Record]) -> list[Calibration]:
    """Compute the calibrations of a plan, if it has any."""
    cells = list(plan.cells if isinstance(plan, Plan) else plan)
    tasks = plan.tasks if isinstance(plan, Plan) else {}
    params = {c.clean: canonical(dict(tasks[c.clean].config["workload"])) for c in cells if c.clean in tasks}
    return calibrations(cells, records, params)


def _tasks(cell: Cell) -> list[TaskId]:
    """List every task with a result in the cell's row, each once."""
    ids = (cell.verify, cell.embed, cell.suspect, cell.clean, cell.attack_task, cell.scratch)
    return list(dict.fromkeys(i for i in ids if i is not None))


def _row(cell: Cell, records: Mapping[TaskId, Record], head: Columns) -> ResultRow:
    judged = _result(records, cell.verify)
    verdict = judged.get("verdict", {})
    columns: Columns = {
        **head,
        **_question(cell),
        **_ending(cell, records),
        **_metrics(cell, records),
        **{name: verdict.get(name) for name in _FROM_VERDICT},
        **{name: _result(records, cell.embed).get(name) for name in COVERTNESS},
        "seconds_embed": _seconds(records, cell.embed),
        "seconds_attack": _seconds(records, cell.attack_task),
        "seconds_verify": _seconds(records, cell.verify),
        "device": judged.get("device"),
        "details": _details(cell, records),
        "access": _ACCESS.get(verdict.get("access")),
    }
    return ResultRow(**columns, **_judgement(cell, ResultRow(**columns)))


def _details(cell: Cell, records: Mapping[TaskId, Record]) -> str | None:
    """Return details of verdict, attack and claim as JSON; None without any."""
    attack = _result(records, cell.attack_task)
    found = {
        "verdict": _result(records, cell.verify).get("verdict", {}).get("details"),
        "attack": attack.get("facts"),
        "claim": attack.get("claim"),
    }
    known = {name: value for name, value in found.items() if value}
    return canonical(known) if known else None


def _question(cell: Cell) -> Columns:
    marks: dict[str, str | bool] = {"head": "original"} if cell.head == "original" else {}
    marks |= {"claim": "adversary"} if cell.claim else {}
    marks |= {"realigned": True} if cell.realigned else {}
    return {
        "task_id": cell.verify,
        "workload": cell.workload,
        "scheme": cell.scheme,
        "scheme_params": canonical(cell.scheme_params),
        "attack": cell.attack,
        "attack_params": canonical({**cell.attack_params, **marks}),
        "strength_name": cell.strength_name,
        "strength": cell.strength,
        "budget": canonical(cell.budget),
        "searched": cell.searched,
        "seed": cell.seed,
        "control": cell.control,
        "metric": cell.metric,
        "embed_id": cell.embed,
        "suspect_id": cell.suspect,
        "clean_id": cell.clean,
        "claimant": "adversary" if cell.claim else "stranger" if cell.control == "stranger_key" else "owner",
        "head": "owner" if cell.head == "original" else "suspect",
        **_declared(cell.attack, canonical(cell.attack_params)),
    }


@lru_cache(maxsize=4096)
def _declared(attack: str, params: str) -> Columns:
    """Return label and knowledge of a configured attack; its name alone without the plugin."""
    config = json.loads(params)
    try:
        plugin: Any = build("attack", {"name": "chain" if "attacks" in config else attack, **config})
    except (UnknownName, ConfigError, ImportError):
        return {"attack_label": attack}
    return {"attack_label": plugin.label, "knowledge": tuple(sorted(plugin.needs()))}


def _ending(cell: Cell, records: Mapping[TaskId, Record]) -> Columns:
    """Return the row's state; a row whose own attack failed has failed, with the attack's cause."""
    record = records.get(cell.verify)
    attack = records.get(cell.attack_task) if cell.attack_task is not None else None
    if attack is not None and attack.state is State.FAILED:
        record = attack
    if record is None:
        return {"status": "skipped", "cached": False, "error": UNREACHED}
    return {"status": _STATUS.get(record.state, "skipped"), "cached": record.cached, "error": record.error}


def _metrics(cell: Cell, records: Mapping[TaskId, Record]) -> Columns:
    """Return test metrics, and validation metrics under ``_val``; the scratch model has test metrics only."""
    made = {"clean": cell.clean, "marked": cell.embed, "suspect": cell.suspect, "scratch": cell.scratch}
    found = {f"metric_{part}": _result(records, task).get("metric_test") for part, task in made.items()}
    del made["scratch"]
    found |= {f"metric_{part}_val": _result(records, task).get("metric_val") for part, task in made.items()}
    # A model that serves licensed users only is judged by its metric for all others.
    judged = _result(records, cell.suspect)
    found |= {"metric_suspect": suspect_metric(judged, "test"), "metric_suspect_val": suspect_metric(judged, "val")}
    return found | {"metric_unlicensed": _result(records, cell.embed).get("unlicensed_test")}


def _judgement(cell: Cell, row: ResultRow) -> Columns:
    """Compute ``relative_drop``, ``beats_scratch`` and ``removed`` from the measured columns."""
    marked, suspect, scratch = row.metric_marked, row.metric_suspect, row.metric_scratch
    beats = None if suspect is None or scratch is None else suspect > scratch + SCRATCH_MARGIN
    judged = row.is_done and cell.control is None and not cell.claim
    within = None if row.budget_drop is None else row.budget_drop <= row.max_drop
    return {
        "relative_drop": (marked - suspect) / marked if suspect is not None and marked and marked > 0 else None,
        "beats_scratch": beats,
        "removed": _all_of(None if row.verdict is None else not row.verdict, within, beats) if judged else None,
    }


def _all_of(*facts: bool | None) -> bool | None:
    """Combine facts by three-valued "and": False if any is False, else None if any is unknown."""
    if False in facts:
        return False
    return None if None in facts else True


def _result(records: Mapping[TaskId, Record], task_id: TaskId | None) -> Mapping[str, Any]:
    record = records.get(task_id) if task_id is not None else None
    return record.result if record is not None and record.state is State.DONE and record.result else {}


def _seconds(records: Mapping[TaskId, Record], task_id: TaskId | None) -> float | None:
    """Return the seconds of the computation, also if it was cached."""
    result = _result(records, task_id)
    seconds = result.get("seconds")
    if seconds is None and result and task_id is not None:
        seconds = records[task_id].seconds
    return None if seconds is None else float(seconds)


def write_results(rows: Sequence[ResultRow], folder: Path) -> Path:
    """Write ``results.parquet`` and ``results.csv`` atomically; return the Parquet file."""
    records = [row.to_record() for row in rows]
    target = write_parquet(folder / "results.parquet", records, RESULTS_SCHEMA)
    # Details hold images and maps of hundreds of numbers, unreadable in a CSV.
    columns = [name for name in COLUMN_TYPES if name != "details"]
    write_whole(folder / "results.csv", table_csv(columns, records).encode())
    return target


def write_parquet(path: Path, records: list[dict[str, Any]], schema: pa.Schema) -> Path:
    """Write records as Parquet, atomically; return the path."""
    raw = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), raw)
    write_whole(path, raw.getvalue().to_pybytes())
    return path


def read_results(path: Path) -> list[ResultRow]:
    """Read a table of ``write_results``, also an older one with fewer columns."""
    return list(map(ResultRow.from_record, pq.read_table(path, schema=RESULTS_SCHEMA).to_pylist()))


def table_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format RFC 4180 text: null is empty, booleans are ``true``/``false``, lists are joined by ``;``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(row[name]) for name in columns] for row in rows)
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return "" if value is None else value
