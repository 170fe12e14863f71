"""What can be read off one row of the results table."""

import json
from collections.abc import Mapping
from typing import Any

from wmarena.attacks.knowledge import Budget

ResultRow = dict[str, Any]
"""One row; the columns are those of ``wmarena.experiments.results.table.RESULTS_SCHEMA``."""

Params = dict[str, Any]


def victim_of(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    """(workload, scheme) with their configurations: what rows are compared within."""
    return row["workload"], row["workload_params"], row["scheme"], row["scheme_params"]


def workload_params(row: Mapping[str, Any]) -> Params:
    """The workload's configuration, one level of dotted names; empty where it is not known."""
    return flat(json.loads(row["workload_params"] or "{}"))


def attack_params(row: Mapping[str, Any]) -> Params:
    """The attack's configuration, one level of dotted names, without its strength and the marks of the row's role."""
    params = json.loads(row["attack_params"])
    for mark in ("head", "claim", "realigned"):
        params.pop(mark, None)
    out = flat(params)
    # A chain's strength is that of its last part that has one.
    holders = [k for k in out if k.rsplit(".", 1)[-1] == row["strength_name"] and out[k] == row["strength"]]
    if row["strength_name"] in out:
        del out[row["strength_name"]]
    elif holders:
        del out[holders[-1]]
    return out


def budget(row: Mapping[str, Any]) -> Params:
    """What the adversary was granted."""
    granted: Params = json.loads(row["budget"])
    return granted


def max_drop(row: Mapping[str, Any]) -> float:
    """Largest absolute accuracy drop at which the row's adversary counts a removal."""
    granted = budget(row).get("max_drop")
    return float(Budget.defaults()["max_drop"] if granted is None else granted)


def budget_drop(row: Mapping[str, Any]) -> float | None:
    """Absolute drop that the budget is held against: on validation data where known, else on test data, else None."""
    for suffix in ("_val", ""):
        marked, suspect = row[f"metric_marked{suffix}"], row[f"metric_suspect{suffix}"]
        if marked is not None and suspect is not None:
            return float(marked - suspect)
    return None


def is_claim(row: Mapping[str, Any]) -> bool:
    """True if the row judges the adversary's own key."""
    return bool(json.loads(row["attack_params"]).get("claim") == "adversary")


def is_random_claim(row: Mapping[str, Any]) -> bool:
    """True if the row judges the best of many random keys (ambiguity level 0)."""
    return row["attack"] == "ambiguity" and is_claim(row) and json.loads(row["attack_params"]).get("level") == 0


def is_unattacked(row: Mapping[str, Any]) -> bool:
    """True if the row judges the owner's key on the marked model as it was published."""
    return row["attack"] == "none" and row["control"] is None


def has_original_head(row: Mapping[str, Any]) -> bool:
    """True if the verdict was taken with the owner's output layer plugged back in."""
    return bool(json.loads(row["attack_params"]).get("head") == "original")


def is_realigned(row: Mapping[str, Any]) -> bool:
    """True if the verdict was taken after bringing the suspect's channels into the owner's order and scale."""
    return bool(json.loads(row["attack_params"]).get("realigned"))


def is_gated(row: Mapping[str, Any]) -> bool:
    """True if a gate of the plan left the row out: neither a failure nor a gap."""
    return row["status"] == "skipped" and (row["error"] or "").startswith("gate:")


UNREACHED = "not reached: the run ended before this task"
"""``error`` of a row whose verify task has no record."""


def is_unreached(row: Mapping[str, Any]) -> bool:
    """True if the run ended before the row's task."""
    return bool(row["error"] == UNREACHED)


def flat(params: Mapping[str, Any], prefix: str = "") -> Params:
    """Nested JSON as one level of dotted names; lists of objects are numbered."""
    out: Params = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            out |= flat({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
