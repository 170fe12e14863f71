"""Trials as JSON documents: the only source of the table, the figures and MLflow.

A trial ends as ``complete``, ``pruned`` (infeasible, unable to reach the best trial, or by the pruner) or ``failed`` (a
task failed); ``running`` has not ended, and the driver of ``lost`` was killed.
"""

import json
import time
from typing import Any, Literal

from wmarena.experiments.study.measures import MEASURES, MeasureCall, TrialEvidence, best_response, mean, taken
from wmarena.experiments.study.spec import StudySpec
from wmarena.experiments.study.trial import Trial, TrialResults
from wmarena.orchestrator.plan.proposals import TrialOutcome

TrialDocument = dict[str, Any]

FINISHED = ("complete", "pruned", "failed")
CONFIRMED = "{}#confirmed"
"""Name of a study's runs on fresh seeds in the journal."""


def describe(
    trial: Trial,
    study: StudySpec,
    outcome: TrialOutcome | Literal["running", "lost"],
    found: TrialResults | None = None,
    why: str = "",
) -> TrialDocument:
    """Make a trial's document."""
    ended = outcome if isinstance(outcome, TrialOutcome) else None
    excesses = dict(ended.constraints or {}) if ended else {}
    return {
        "number": trial.number,
        "label": trial.label,
        "question": study.digest,
        "state": outcome.state if isinstance(outcome, TrialOutcome) else outcome,
        "why": why,
        "params": dict(trial.params),
        "warm": trial.warm,
        "feasible": ended is not None and ended.state == "complete" and all(v <= 0 for v in excesses.values()),
        "values": _values(study, ended),
        "constraints": excesses,
        "started": trial.started,
        "finished": time.time() if ended else None,
        "overhead_s": round(trial.planned_s, 6),
        "told": [list(pair) for pair in trial.reported],
        "tasks": list(dict.fromkeys(cell.verify for cell in trial.cells)),
        **(_evidence(study, found) if found is not None else {}),
    }


def _values(study: StudySpec, outcome: TrialOutcome | None) -> dict[str, float]:
    if outcome is None or outcome.values is None:
        return {}
    return {str(asked): value for asked, value in zip(study.objectives, outcome.values, strict=True)}


def outcome_of(document: TrialDocument) -> TrialOutcome:
    """Return the outcome of a trial that has ended, for Optuna."""
    values = tuple(document["values"].values()) if document["state"] == "complete" else None
    return TrialOutcome(state=document["state"], values=values, constraints=document["constraints"])


def _evidence(study: StudySpec, found: TrialResults) -> TrialDocument:
    """Collect the data of figures: all measures, objectives by seed, statistics for all γ, best responses."""
    every = {asked: mean(asked, found.units) for asked in _asked(study)}
    return {
        "measures": {str(asked): value for asked, value in every.items() if value is not None},
        "by_seed": {str(asked): taken(asked, found.units) or [] for asked in study.objectives},
        "statistics": found.statistics.document(),
        "best_responses": [response for unit in found.units if (response := _response(unit)) is not None],
    }


def _asked(study: StudySpec) -> list[MeasureCall]:
    named = [*study.objectives, *(limit.asked for limit in study.constraints)]
    return list(dict.fromkeys([*named, *(MeasureCall(name) for name in MEASURES)]))


def _response(unit: TrialEvidence) -> TrialDocument | None:
    row = best_response(unit)
    if row is None or row.margin is None:
        return None
    return {
        "seed": row.seed,
        "attack": row.attack,
        "params": row.variant,
        "strength_name": row.strength_name,
        "strength": row.strength,
        "margin": row.margin,
        "drop": row.budget_drop,
    }


def shown(value: Any) -> str:
    """Format a parameter for people."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
