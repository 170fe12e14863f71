"""Exports the best trial as a spec: the study's experiment with the trial's fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.study.spec import StudySpec
from wmarena.experiments.study.words import GAMMA
from wmarena.orchestrator.files.atomic import write_whole


def exported(study: StudySpec, best: Mapping[str, Any]) -> ExperimentSpec:
    """Return the experiment of ``best``, one of ``StudySummary.best``; with γ if the scheme has that field."""
    params = dict(best["params"])
    scheme = study.question.spec.schemes[0]
    fields = {path: value for path, value in params.items() if path != GAMMA}
    if GAMMA in params and GAMMA in scheme.parameters():
        fields[f"schemes.{scheme.name}.{GAMMA}"] = params[GAMMA]
    return study.question.with_params(fields, name=f"{study.question.spec.name}-best")


def write_export(study: StudySpec, best: Mapping[str, Any], path: Path) -> None:
    """Write the spec, with its trial in a comment."""
    values = ", ".join(f"{name} = {value:.6g}" for name, value in best["values"].items())
    found = f"# Trial {best['number']} of the study {study.name}: {values}."
    threshold = best["params"].get(GAMMA)
    if threshold is not None:
        found += f"\n# Threshold on the statistic: γ = {threshold:g}."
    spec = exported(study, best)
    write_whole(path, f"{found}\n{spec.text}".encode())
