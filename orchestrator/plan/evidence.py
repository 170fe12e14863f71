"""The record of a task, the same in journal, manifest, MLflow and report.

``result`` of a task that made a model (train, embed, attack)::

    {"metric": "accuracy", "metric_test": 0.91, "metric_val": 0.90, "seconds": 12.3,
     "made": "cd34...",                       # SHA-256 of the model's file
     "unlicensed_test": 0.11, "unlicensed_val": 0.12,   # embed: the metric for users without a licence
     "covertness_mean_abs_dev": 0.004,        # embed: mean |w - w0| against the clean model
     "covertness_ks": 0.01, "covertness_relative_l2": 0.1,
     "moved_mean_abs_dev": 0.001,             # attack: mean |w - w0| against the victim
     "commitment": "ab12...",                 # embed: of the completed key
     "facts": {"target_accuracy": 0.8},       # attack: its findings
     "claim": {"n_tried": 200, ...}}          # forging attack: never key material

of a verify task::

    {"verdict": {...fields of wmarena.schemes.base.Verdict...}, "seconds": 0.4}

of a verify task that calibrates a scheme on a clean model (fresh keys that were never embedded)::

    {"calibration": {"p_method": "binomial", "n": 600, "q": 0.5,
                     "pairs": [{"statistic", "k", "log10_p", "verdict", "threshold"}, ...]}, "seconds": 0.4}

All hold ``device`` ("cpu" or the GPU's name), ``environment`` (library versions, device kind), ``consumed`` (parent
-> SHA-256 of its model at that time) and ``memory`` (``peak_bytes``; on a GPU its ``total_bytes``; and
``most_evaluated``, the evaluation batch, if memory ran out before).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wmarena.orchestrator.plan.task import State, TaskId

COVERTNESS = ("covertness_mean_abs_dev", "covertness_ks", "covertness_relative_l2")
"""Weight change by a mark: mean |w - w0|, distance of the two histograms, ||w - w0|| / ||w0||."""


def suspect_metric(result: Mapping[str, Any], split: str) -> float | None:
    """Return a model's metric for a user without a licence on ``split`` ("test", "val"): the metric of suspects.

    Equal to ``metric_<split>`` except for a marked model that needs a serial number (DSN).
    """
    value = result.get(f"unlicensed_{split}", result.get(f"metric_{split}"))
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Record:
    """The state of one task at the end of a run.

    Attributes:
        state: done, failed or skipped.
        result: see the module's docstring; None unless done.
        error: ``kind: message`` of the failure, ``skipped: label of the failed ancestor``, or None.
        cached: True if it was finished before this run.
        seconds: wall seconds of the successful attempt.
        attempt: attempts made, 0 if none.
        worker: name of the worker of the last attempt.
    """

    task_id: TaskId
    state: State
    result: Mapping[str, Any] | None = None
    error: str | None = None
    cached: bool = False
    seconds: float = 0.0
    attempt: int = 0
    worker: str = ""
    caveats: tuple[str, ...] = field(default=())


class Lease(NamedTuple):
    """Tasks that this driver may run, and tasks that others have finished; others are computing the rest."""

    mine: set[TaskId]
    done: dict[TaskId, Record]
