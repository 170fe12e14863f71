"""What a task leaves behind: one typed record, the same in journal, manifest, MLflow and report.

``result`` of a task that made a model (train, embed, attack)::

    {"metric": "accuracy", "metric_test": 0.91, "metric_val": 0.90, "seconds": 12.3,
     "made": "cd34...",                       # SHA-256 of the model's file
     "covertness_mean_abs_dev": 0.004,        # embed: mean |w - w0| against the clean model
     "moved_mean_abs_dev": 0.001,             # attack: mean |w - w0| against the victim
     "commitment": "ab12...",                 # embed: of the completed key
     "claim": {"n_tried": 200, ...}}          # attack that forged: what was tried, never key material

of a verify task::

    {"verdict": {...fields of schemes.base.Verdict...}, "seconds": 0.4}

All hold ``device`` ("cpu" or the GPU's name), ``environment`` (library versions, device kind) and ``consumed`` (parent
-> SHA-256 of the model that it was then).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.task import State, TaskId


@dataclass(frozen=True)
class Record:
    """The state of one task at the end of a run.

    Attributes:
        state: done, failed or skipped.
        result: see the module's docstring; None unless done.
        error: ``kind: message`` of the failure, ``skipped: label of the failed ancestor``, or None.
        cached: True if this run found it finished.
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
