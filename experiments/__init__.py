"""Which question is asked: specs, their expansion, the command line, workloads, the report.

``from experiments import ExperimentSpec, StudySpec, run, tune`` is the Python API; importing the package loads nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmarena.experiments.running.execution import RunSummary, run
    from wmarena.experiments.spec.problems import SpecError
    from wmarena.experiments.spec.experiment import ExperimentSpec
    from wmarena.experiments.study.run import StudySummary, tune
    from wmarena.experiments.study.spec import StudySpec

__all__ = ["ExperimentSpec", "RunSummary", "SpecError", "StudySpec", "StudySummary", "run", "tune"]

_HOMES = {
    "ExperimentSpec": "wmarena.experiments.spec.experiment",
    "RunSummary": "wmarena.experiments.running.execution",
    "SpecError": "wmarena.experiments.spec.problems",
    "StudySpec": "wmarena.experiments.study.spec",
    "StudySummary": "wmarena.experiments.study.run",
    "run": "wmarena.experiments.running.execution",
    "tune": "wmarena.experiments.study.run",
}


def __getattr__(name: str) -> Any:
    """The API's names, loaded when they are used: worker processes need workloads, not specs."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
