"""Which question is asked: specs, their expansion, the command line, workloads, the report.

``from experiments import ExperimentSpec, StudySpec, run, tune`` is the Python API; importing the package loads nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.execution import RunSummary, run
    from experiments.problems import SpecError
    from experiments.spec import ExperimentSpec
    from experiments.study.run import StudySummary, tune
    from experiments.study.spec import StudySpec

__all__ = ["ExperimentSpec", "RunSummary", "SpecError", "StudySpec", "StudySummary", "run", "tune"]

_HOMES = {
    "ExperimentSpec": "experiments.spec",
    "RunSummary": "experiments.execution",
    "SpecError": "experiments.problems",
    "StudySpec": "experiments.study.spec",
    "StudySummary": "experiments.study.run",
    "run": "experiments.execution",
    "tune": "experiments.study.run",
}


def __getattr__(name: str) -> Any:
    """The API's names, loaded when they are used: worker processes need workloads, not specs."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
