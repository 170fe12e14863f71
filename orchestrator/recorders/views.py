"""An experiment's page in MLflow: its description, and saved views of its table of runs.

A view is a tag of the experiment, ``mlflow.sharedViewState.NAME``, and an address that names it. MLflow stores the
choice of columns in the browser; a view is the way to preset it.
"""

import json
from collections.abc import Sequence

from wmarena.orchestrator.recorders.fields import PREFIX

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of a new experiment, which select MLflow's kind of page."""

_VERDICTS = "wmarena-verdicts"
_TRAINING = "wmarena-training"


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """Return an experiment's description, and the views that it links to, as tags."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    note = (
        f"[Verdicts]({page}&viewStateShareKey={_VERDICTS}) · [Training]({page}&viewStateShareKey={_TRAINING}) · "
        f"[Executions]({page}): one run each, the runs of their tasks below it; report, table and figures are among "
        "the execution's artifacts."
    )
    kind = f"tags.`{PREFIX}kind`"
    return {
        "mlflow.note.content": note,
        f"mlflow.sharedViewState.{_VERDICTS}": _view(
            f"{kind} = 'verify'",
            "margin",
            tags=("scheme", "attack", "control", "seed", "workload", "caveats"),
            metrics=("verdict", "margin", "log10_p", "metric_suspect", "relative_drop"),
        ),
        f"mlflow.sharedViewState.{_TRAINING}": _view(
            f"{kind} != 'verify' AND {kind} != 'run'",
            "metric_clean",
            tags=("kind", "scheme", "seed", "workload"),
            metrics=("metric_clean", "metric_marked", "covertness_mean_abs_dev", "seconds_train", "seconds_embed"),
        ),
    }


def _view(search: str, order: str, *, tags: Sequence[str], metrics: Sequence[str]) -> str:
    """Return a view of the runs of a search, the smallest ``order`` first (ordered by time, MLflow would nest them)."""
    state = {
        "searchFilter": search,
        "orderByKey": f"metrics.`{order}`",
        "orderByAsc": True,
        "selectedColumns": [*(f"metrics.`{m}`" for m in metrics), *(f"tags.`{PREFIX}{t}`" for t in tags)],
    }
    return json.dumps(state)


def pictures(paths: Sequence[str], run: str) -> str:
    """Return Markdown that shows images among a run's artifacts."""
    return "\n\n".join(f"![{path}](get-artifact?path={path}&run_uuid={run})" for path in paths)
