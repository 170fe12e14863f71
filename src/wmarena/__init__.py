"""Which watermark survives? Attack-and-defence experiments on watermarked neural networks.

>>> from wmarena import ExperimentSpec, StudySpec, run, tune, verify
>>> summary = run(ExperimentSpec.load("quickstart"), store="wmarena-store")  # train, embed, attack, verify; resumable
>>> summary.report  # path of the HTML report; summary.results is the Parquet table
>>> study = tune(StudySpec.load("digits_lambda"), store="wmarena-store")  # search λ1, λ2, γ or any other field
>>> study.best  # parameters and values of the best trials
>>> verify("suspect.safetensors", "KEYDIR")["verdict"]  # evidence on one model: statistic, threshold, p-value

``wmarena.schemes`` and ``wmarena.attacks`` hold what is compared (they need torch only), ``wmarena.orchestrator`` runs
tasks on Ray or in this process, ``wmarena.experiments`` reads specs and writes reports. Extend them through
``wmarena.schemes.base.Scheme``, ``wmarena.attacks.base.Attack`` and ``wmarena.experiments.workloads``.
Importing this package loads nothing: each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmarena.experiments.judging.verification import verify as verify
    from wmarena.experiments.running.execution import RunSummary as RunSummary
    from wmarena.experiments.running.execution import run as run
    from wmarena.experiments.spec.experiment import ExperimentSpec as ExperimentSpec
    from wmarena.experiments.spec.problems import SpecError as SpecError
    from wmarena.experiments.study.run import StudySummary as StudySummary
    from wmarena.experiments.study.run import tune as tune
    from wmarena.experiments.study.spec import StudySpec as StudySpec

_MODULES = {
    "ExperimentSpec": "wmarena.experiments.spec.experiment",
    "RunSummary": "wmarena.experiments.running.execution",
    "SpecError": "wmarena.experiments.spec.problems",
    "StudySpec": "wmarena.experiments.study.spec",
    "StudySummary": "wmarena.experiments.study.run",
    "run": "wmarena.experiments.running.execution",
    "tune": "wmarena.experiments.study.run",
    "verify": "wmarena.experiments.judging.verification",
}

__all__ = ["ExperimentSpec", "RunSummary", "SpecError", "StudySpec", "StudySummary", "run", "tune", "verify"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: worker processes need no specs and no report."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The public names, for completion in shells and notebooks."""
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "importlib"})
