"""Fields of a tracker entry: names, tags, parameters and metrics of a task, from journal rows alone.

An entry is a train task, an embed task, or a cell of the table: a verify task with its attack, marked model and clean
twin. A failed task is an entry of its own. Metrics have the names of the table's columns; unknown values are left out.
Entries hold no key material except commitments.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from wmarena.orchestrator.plan.evidence import COVERTNESS, suspect_metric
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.recorders.links import ComparisonLink

RunFields = Mapping[str, Any]
"""One row of ``Journal.task_rows``."""

MetricPoint = tuple[str, float, int]
"""(curve, value, step)."""

PREFIX = "wmarena."
_MAX_PARAM = 6000
_MAX_TAG = 8000
_VERDICT_NUMBERS = (
    *("statistic", "n", "k", "null_q", "threshold", "level", "log10_p", "log10_p_adj", "margin"),
    *("verdict", "verdict_paper", "queries"),
)


@dataclass(frozen=True, kw_only=True)
class DataSetInput:
    """Data set of a task: its name and the fingerprint of its content."""

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class TrackerEntry:
    """One entry of the tracker.

    Attributes:
        mark: name in the journal's table of sent entries: the task's id, or ``id@run`` for a failure in one execution.
        task_id: train or embed task, failed task, or the cell's verify task.
        started_ms, ended_ms: Unix milliseconds. A cell lasts as long as its attack and verification.
        curves_of: task whose training curves the entry holds, or None.
        made: task whose model the entry introduces, or None; ``judged``: task whose model is consumed, or None.
        about_model: True if the metrics describe the made (else the judged) model itself: not a control, an adversary's
            claim, or a model with the owner's head plugged back.
    """

    mark: TaskId
    task_id: TaskId
    name: str
    failed: bool
    started_ms: int
    ended_ms: int
    data: DataSetInput
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves_of: TaskId | None = None
    made: TaskId | None = None
    judged: TaskId | None = None
    about_model: bool = False


@dataclass(frozen=True, kw_only=True)
class RelatedRows:
    """A row with the rows of its ancestors, as far as the journal has them.

    Attributes:
        suspect: what made the judged model; ``claim``: the attack whose own key is judged, or None.
    """

    own: RunFields
    clean: RunFields | None = None
    scratch: RunFields | None = None
    embed: RunFields | None = None
    attack: RunFields | None = None
    suspect: RunFields | None = None


def parents(row: RunFields) -> dict[str, TaskId]:
    """Return role -> id of the tasks that a task consumed."""
    return {role: TaskId(task_id) for role, task_id in row["identity"]["parents"]}


def relatives(row: RunFields, rows: Mapping[TaskId, RunFields], link: ComparisonLink | None = None) -> RelatedRows:
    """Collect the rows that ``row`` depends on; ``link`` names those that only the plan knows."""
    found = {role: rows.get(task_id) for role, task_id in parents(row).items()}
    kind = row["kind"]
    if kind == "train":
        return RelatedRows(own=row, clean=row)
    clean = None if link is None else rows.get(link.clean)
    if kind == "embed":
        return RelatedRows(own=row, clean=clean, embed=row)
    if kind == "attack":
        return RelatedRows(own=row, attack=row, embed=found.get("victim"))
    attack = next((r for r in (found.get("suspect"), found.get("claim")) if r and r["kind"] == "attack"), None)
    victim = None if attack is None else rows.get(parents(attack)["victim"])
    embed = next((r for r in (found.get("owner"), victim, found.get("suspect")) if r and r["kind"] == "embed"), None)
    return RelatedRows(
        own=row,
        clean=clean,
        scratch=None if link is None or link.scratch is None else rows.get(link.scratch),
        embed=embed,
        attack=attack,
        suspect=found.get("suspect"),
    )


def describe(
    row: RunFields,
    rows: Mapping[TaskId, RunFields],
    *,
    run_id: str,
    link: ComparisonLink | None = None,
    data_sets: Mapping[str, str] | None = None,
) -> TrackerEntry:
    """Describe one settled row as an entry.

    Args:
        rows: the row's ancestors by id, as far as the journal has them.
        run_id: the execution; a failure is sent once per execution.
        link: the comparison of a verify task.
        data_sets: workload -> name of its data set; the workload's own name where it is missing.
    """
    failed, config = row["state"] == "failed", row["identity"]["config"]
    related = relatives(row, rows, link)
    computed = [row] if related.attack is None or related.attack is row else [related.attack, row]
    ended = int(row["finished"] * 1000)
    makes = not failed and row["kind"] in ("embed", "verify")
    maker = related.attack if row["kind"] == "verify" else row
    return TrackerEntry(
        mark=TaskId(f"{row['id']}@{run_id}") if failed else row["id"],
        task_id=row["id"],
        name=entry_name(row),
        failed=failed,
        started_ms=ended - int(1000 * sum(seconds(r) for r in computed)),
        ended_ms=ended,
        data=data_set(row, data_sets),
        tags=tags(related),
        params=flat(merged_config(related)) | {"seed": str(row["seed"])},
        metrics=metrics(related, link),
        curves_of=None if failed or maker is None else maker["id"],
        # A model is scored once, when it is made; a mere claim has no score.
        made=maker["id"] if makes and maker is not None and "metric_test" in _result(maker) else None,
        judged=_judged(related),
        about_model=makes and not any(config.get(name) for name in ("control", "claim")) and not _head(config),
    )


def data_set(row: RunFields, names: Mapping[str, str] | None) -> DataSetInput:
    """Return the data set of a row's task; ``names``: workload -> its data set, by default the workload's name."""
    return DataSetInput(name=(names or {}).get(row["workload"], row["workload"]), fingerprint=row["identity"]["data"])


def _head(config: Mapping[str, Any]) -> str | None:
    """Return whose output layer is judged if not the suspect's own."""
    head = config.get("head")
    return None if head == "deployed" else head


def _judged(related: RelatedRows) -> TaskId | None:
    """Return the embed task of the marked model that an attack or a verification consumes."""
    if related.own["kind"] not in ("attack", "verify") or related.embed is None:
        return None
    consumes = related.attack is not None or (related.suspect is not None and related.suspect["kind"] == "embed")
    return related.embed["id"] if consumes else None


def entry_name(row: RunFields) -> str:
    """Return the task's label, ``kind/scheme/attack/...``."""
    return row["label"] or "/".join(filter(None, (row["kind"], row["scheme"], row["attack"], f"seed{row['seed']}")))


def tags(related: RelatedRows) -> dict[str, str]:
    """Return an entry's tags, ``wmarena.`` included."""
    row, result = related.own, related.own["result"] or {}
    verdict = result.get("verdict", {})
    config = row["identity"]["config"]
    makers = [r for r in (related.attack, row) if r is not None]
    found: dict[str, Any] = {name: row[name] for name in ("kind", "scheme", "attack", "workload", "seed")}
    found |= {"task_id": row["id"], "status": row["state"], "parents": canonical(parents(row))}
    optional = {
        "control": config.get("control"),
        "head": _head(config),
        "claim": "adversary" if config.get("claim") else None,
        "attack_task": None if row["kind"] != "verify" or related.attack is None else related.attack["id"],
        "metric": next((m for m in (_result(r).get("metric") for r in (row, related.suspect)) if m), None),
        "commitment": result.get("commitment"),
        "p_method": verdict.get("p_method"),
        "reason": verdict.get("reason"),
        "caveats": ", ".join(dict.fromkeys([c for r in makers for c in r["caveats"]] + [*verdict.get("caveats", ())])),
        "device": result.get("device"),
        "worker": row["worker"],
        "attempts": str(row["attempt"]) if row["attempt"] > 1 else None,
        "error": row["error"],
    }
    found |= {name: value for name, value in optional.items() if value}
    return {PREFIX + name: cut(str(value), _MAX_TAG) for name, value in found.items()}


def merged_config(related: RelatedRows) -> dict[str, Any]:
    """Merge the configurations of an entry's embedding, attack and verification."""
    out: dict[str, Any] = {}
    for row in (related.embed, related.attack, related.own):
        for name, value in ({} if row is None else row["identity"]["config"]).items():
            before = out.get(name)
            if not isinstance(value, dict) or not isinstance(before, dict):
                out[name] = value
            elif before.get("name") == value.get("name"):
                out[name] = {**before, **value}
            else:
                out[f"claimed_{name}"] = value  # the adversary's own scheme, beside the victim's
    return out


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a configuration to ``part.field`` -> text; plugins in lists are numbered, other lists are JSON."""
    out: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = cut(value if isinstance(value, str) else json.dumps(value), _MAX_PARAM)
    return out


def cut(text: str, limit: int) -> str:
    """Cut ``text`` to at most ``limit`` characters, the last an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def metrics(related: RelatedRows, link: ComparisonLink | None = None) -> dict[str, float]:
    """Return an entry's metrics, named like the table's columns; truth values are 0 and 1."""
    made = {"clean": related.clean, "marked": related.embed, "suspect": related.suspect}
    found: dict[str, Any] = {f"metric_{part}": _result(row).get("metric_test") for part, row in made.items()}
    found |= {f"metric_{part}_val": _result(row).get("metric_val") for part, row in made.items()}
    for name, split in (("metric_suspect", "test"), ("metric_suspect_val", "val")):
        found[name] = suspect_metric(_result(related.suspect), split)
    found["metric_scratch"] = _result(related.scratch).get("metric_test")
    marked, suspect = found["metric_marked"], found["metric_suspect"]
    if marked and suspect is not None:
        found["relative_drop"] = (marked - suspect) / marked
    found |= {name: _result(related.embed).get(name) for name in COVERTNESS}
    found |= _calibrated(_result(related.own).get("calibration"))
    facts = _result(related.attack).get("facts") or {}
    found |= {f"attack_{name}": value for name, value in facts.items() if isinstance(value, int | float)}
    found["n_tried"] = (_result(related.attack).get("claim") or {}).get("n_tried")
    verdict = _result(related.own).get("verdict", {})
    found |= {name: verdict.get(name) for name in _VERDICT_NUMBERS}
    found["strength"] = None if link is None else link.strength
    stages = {r["kind"]: seconds(r) for r in (related.embed, related.attack, related.own) if r is not None}
    found |= {f"seconds_{kind}": value for kind, value in stages.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _calibrated(found: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the metrics of a calibration task: number of unembedded keys, their statistics, how many pass."""
    if not found:
        return {}
    values = [pair["statistic"] for pair in found["pairs"]]
    passing = sum(bool(pair["verdict"]) for pair in found["pairs"])
    return {"n_keys": len(values), "statistic_mean": fmean(values), "statistic_max": max(values), "passing": passing}


def seconds(row: RunFields) -> float:
    """Return the seconds of the computation; the attempt's wall seconds if there is no result."""
    return float(_result(row).get("seconds", row["seconds"]))


def _result(row: RunFields | None) -> Mapping[str, Any]:
    return {} if row is None or row["state"] != "done" else row["result"] or {}


def points(history: list[dict[str, float]]) -> Iterator[MetricPoint]:
    """Yield the points of a ``history.json`` in order, with curves named ``training/...``."""
    for record in history:
        for name, value in record.items():
            if name != "step":
                yield f"training/{name}", float(value), int(record["step"])
