"""MLflow as a tracker.

One experiment per spec, one parent run per execution, one nested run per entry: about six writes each, in batches
within MLflow's limits. Models are LoggedModels that point into the store, data sets are inputs with a fingerprint:
neither is copied. Run ids are explicit; the fluent API and its thread-local state are not used.
"""

import contextlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from wmarena.orchestrator.files import addresses
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.recorders.connection import (
    MAX_DIGEST,
    MAX_METRICS,
    MAX_NOTE,
    MAX_PARAMS,
    MlflowConnection,
    chunks,
    key,
)
from wmarena.orchestrator.recorders.fields import PREFIX, DataSetInput, TrackerEntry, cut
from wmarena.orchestrator.recorders.mirror import Mirror
from wmarena.orchestrator.recorders.tracker import (
    Delivery,
    Ending,
    ParentRun,
    ParentRunResults,
    StudyEntry,
    TrackedRun,
    TrackerError,
)
from wmarena.orchestrator.recorders.views import KIND, experiment_tags, pictures
from wmarena.orchestrator.store.local import Store, safe_name

# MLflow is imported after `connection`, which sets the environment that MLflow reads at import.
# isort: split

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Metric, Param, RunTag

_SERVER_CLIENTS = 8
_STATUS: dict[Ending, str] = {"done": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_CONTEXT = {"train": "training", "embed": "training", "attack": "attack", "verify": "evaluation"}


class MlflowTracker:
    """An MLflow server or database.

    Args:
        root: the store's folder, for the default database, and for artifacts unless a server stores them.
        uri: tracking address; None for ``sqlite:///<root>/mlflow.db``.
        log_models: copy weights as artifacts of their run, instead of only linking them.
    """

    def __init__(self, root: Path, uri: str | None = None, *, log_models: bool = False) -> None:
        self.uri = addresses.resolve(uri, root)
        self._mlflow = MlflowConnection(self.uri)
        self._root = root
        self._log_models = log_models
        self._opened: dict[str, tuple[str, str]] = {}
        self._experiment = ""
        self._known_data: set[DataSetInput] = set()
        self._data_set_lock = threading.Lock()

    @property
    def address(self) -> str:
        return addresses.shown(self.uri)

    @property
    def clients(self) -> int:
        return _SERVER_CLIENTS if addresses.is_remote(self.uri) else 1

    # Executions

    def open(self, experiment: str) -> tuple[str, str]:
        if experiment not in self._opened:
            with self._mlflow.client() as client:
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    remote = addresses.is_remote(self.uri)
                    # Absolute: MLflow would resolve it in each process's working folder.
                    place = None if remote else (self._root.absolute() / "mlartifacts" / safe_name(experiment)).as_uri()
                    number = client.create_experiment(experiment, place, tags=KIND)
                    found = client.get_experiment(number)
            if found.lifecycle_stage != "active":
                raise TrackerError(
                    f"expected experiment {experiment!r} to be active, got a deleted one; "
                    f"`mlflow experiments restore -x {found.experiment_id}`, or give the spec another name",
                    unreachable=True,
                )
            self._set_missing_tags(found)
            # A new database at the same address is another place: it gets all entries again.
            place = f"{self.address}#{found.experiment_id}@{found.creation_time}"
            self._opened[experiment] = (found.experiment_id, place)
        self._experiment = self._opened[experiment][0]
        return self._opened[experiment]

    def _set_missing_tags(self, experiment: Any) -> None:
        """Set description and views; a user's own description stays."""
        with self._mlflow.client() as client:
            for name, value in experiment_tags(experiment.experiment_id).items():
                if name not in experiment.tags:
                    client.set_experiment_tag(experiment.experiment_id, name, value)

    def find_execution(self, run_id: str) -> str | None:
        found = self._search({f"{PREFIX}run_id": run_id, f"{PREFIX}kind": "run"})
        return str(found[0].info.run_id) if found else None

    def start_execution(self, execution: ParentRun) -> str:
        tags = {**execution.tags, "mlflow.note.content": execution.note, "mlflow.source.name": "wmarena"}
        with self._mlflow.client() as client:
            run = client.create_run(
                self._experiment, start_time=execution.started_ms, tags=tags, run_name=execution.run_id
            )
        return str(run.info.run_id)

    def close_execution(self, parent: str, closing: ParentRunResults) -> None:
        metrics = [Metric(name, value, closing.ended_ms, 0) for name, value in closing.metrics.items()]
        shown = pictures(closing.figures, parent)
        note = cut(closing.note, MAX_NOTE - len(shown)) + f"\n\n{shown}"
        tags = [RunTag(k, v) for k, v in {**closing.tags, "mlflow.note.content": note.strip()}.items()]
        params = [Param(k, v) for k, v in closing.params.items()]
        data = [_data_set(found, "evaluation") for found in closing.data]
        with self._mlflow.client() as client:
            client.log_batch(parent, metrics=metrics, tags=tags, params=params)
            client.log_inputs(parent, data)
            client.set_terminated(parent, _STATUS[closing.ending], closing.ended_ms)

    def write_text(self, parent: str, name: str, text: str) -> None:
        with self._mlflow.client() as client:
            client.log_text(parent, text, name)

    def write_file(self, parent: str, path: Path) -> None:
        with self._mlflow.client() as client:
            client.log_artifact(parent, str(path))

    # Entries

    def find(self, entry: TrackerEntry, parent: str) -> TrackedRun | None:
        tags = {f"{PREFIX}task_id": entry.task_id, f"{PREFIX}status": entry.tags[f"{PREFIX}status"]}
        run = self._find_complete(tags | ({"mlflow.parentRunId": parent} if entry.failed else {}))
        if run is None:
            return None
        outputs = run.outputs.model_outputs if run.outputs is not None else []
        return TrackedRun(run=run.info.run_id, model=outputs[0].model_id if outputs else None)

    def _find_complete(self, tags: Mapping[str, str]) -> Any:
        """Return the last complete run with ``tags``, or None; delete half-written ones of killed passes."""
        complete = None
        for run in self._search(tags):
            if run.info.status == "RUNNING":
                self._remove(run.info.run_id)
            else:
                complete = run
        return complete

    def _search(self, tags: Mapping[str, str]) -> Sequence[Any]:
        asked = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        with self._mlflow.client() as client:
            runs: Sequence[Any] = client.search_runs([self._experiment], filter_string=asked, max_results=100)
        return runs

    def _remove(self, run: str) -> None:
        """Delete a run with its models."""
        with self._mlflow.client() as client:
            for model in client.search_logged_models([self._experiment], filter_string=f"source_run_id = '{run}'"):
                client.delete_logged_model(model.model_id)
            client.delete_run(run)

    def send(self, delivery: Delivery) -> TrackedRun:
        entry = delivery.entry
        tags = {**entry.tags, "mlflow.parentRunId": delivery.parent, "mlflow.note.content": delivery.note}
        with self._mlflow.client() as client:
            created = client.create_run(
                self._experiment,
                start_time=entry.started_ms,
                tags=tags | {"mlflow.source.name": "wmarena"},
                run_name=entry.name,
            )
            run: str = created.info.run_id
            made = None
            if delivery.weights is not None and delivery.model is None:
                made = self._log_model(entry, run, delivery.weights.uri)
            model = made or delivery.model
            about = (model or delivery.consumes) if entry.about_model else None
            found = [Metric(key(k), v, entry.ended_ms, 0, model_id=about) for k, v in entry.metrics.items()]
            found += [Metric(key(name), value, entry.ended_ms, step) for name, value, step in delivery.points]
            self._log(run, found, [Param(key(k), v) for k, v in entry.params.items()])
            consumed = [m for m in (delivery.consumes, delivery.model) if m]
            self._log_inputs(client, run, entry, [LoggedModelInput(m) for m in consumed])
            if made:
                client.log_outputs(run, [LoggedModelOutput(made, 0)])
                client.finalize_logged_model(made, "READY")
            if self._log_models and delivery.weights is not None and (path := delivery.weights.fetch()) is not None:
                client.log_artifact(run, str(path), "model")
            client.set_terminated(run, "FAILED" if entry.failed else "FINISHED", entry.ended_ms)
        return TrackedRun(run=run, model=model)

    def _log_inputs(self, client: Any, run: str, entry: TrackerEntry, models: Sequence[Any]) -> None:
        """Log inputs, a new data set by one thread only: MLflow's server fails if several create it at once."""
        with self._data_set_lock if entry.data not in self._known_data else contextlib.nullcontext():
            client.log_inputs(run, [_data_set(entry.data, _CONTEXT[entry.tags[f"{PREFIX}kind"]])], models)
            self._known_data.add(entry.data)

    # Studies

    def find_study_entry(self, entry: StudyEntry) -> str | None:
        found = self._find_complete(entry.tags)
        return None if found is None else str(found.info.run_id)

    def write_study_entry(self, entry: StudyEntry, parent: str | None) -> str:
        tags = {**entry.tags, "mlflow.note.content": entry.note, "mlflow.source.name": "wmarena"}
        tags |= {"mlflow.parentRunId": parent} if parent is not None else {}
        with self._mlflow.client() as client:
            created = client.create_run(self._experiment, start_time=entry.started_ms, tags=tags, run_name=entry.name)
            run: str = created.info.run_id
            now = entry.ended_ms or created.info.start_time
            found = [Metric(key(name), value, now, 0) for name, value in entry.metrics.items()]
            found += [Metric(key(name), value, now, step) for name, value, step in entry.points]
            self._log(run, found, [Param(key(name), value) for name, value in entry.params.items()])
            client.set_terminated(run, _STATUS[entry.ending], entry.ended_ms)
        return run

    def add_metrics(self, run: str, metrics: Mapping[str, float]) -> None:
        with self._mlflow.client() as client:
            for name, value in metrics.items():
                client.log_metric(run, key(name), value)

    def _log_model(self, entry: TrackerEntry, run: str, weights: str) -> str:
        """Create a LoggedModel that points to the store's file."""
        copied = ("scheme", "attack", "workload", "seed")
        kind, _, rest = entry.name.partition("/")
        made = "marked" if kind == "embed" else "attacked"
        with self._mlflow.client() as client:
            model = client.create_logged_model(
                self._experiment,
                name=re.sub(r"[/:.%\"']", "_", f"{made}/{rest}"),
                source_run_id=run,
                tags={f"{PREFIX}{k}": entry.tags[f"{PREFIX}{k}"] for k in copied}
                | {f"{PREFIX}task_id": str(entry.made), "artifact_uri": weights},
                model_type=f"{made} model",
            )
        return str(model.model_id)

    def _log(self, run: str, found: Sequence[Any], params: Sequence[Any]) -> None:
        """Log metrics and parameters in batches within MLflow's limits."""
        with self._mlflow.client() as client:
            for some_metrics, some_params in zip_longest(
                chunks(found, MAX_METRICS), chunks(params, MAX_PARAMS), fillvalue=()
            ):
                client.log_batch(run, metrics=some_metrics, params=some_params)


def _data_set(found: DataSetInput, context: str) -> Any:
    source = json.dumps({"data_set": found.name, "fingerprint": found.fingerprint})
    data = Dataset(found.name, found.fingerprint[:MAX_DIGEST], source_type="wmarena", source=source)
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])


class MlflowRecorder(Mirror):
    """Mirrors executions of a store into MLflow.

    Args:
        journal: a connection of its own.
        tracking_uri, log_models: as of ``MlflowTracker``.
    """

    def __init__(
        self, store: Store, journal: Journal, tracking_uri: str | None = None, *, log_models: bool = False
    ) -> None:
        super().__init__(store, journal, MlflowTracker(store.root, tracking_uri, log_models=log_models))
