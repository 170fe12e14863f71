"""The MLflow recorder: content, exactly-once sending, failures, and no leaked keys."""

import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.orchestrator.recorder_world import EXPERIMENT, SPEC, World
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.keys.storage import save_key
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.orchestrator.recorders.base import SyncReport
from wmarena.orchestrator.recorders.connection import MlflowClient
from wmarena.orchestrator.recorders.mirror import Mirror
from wmarena.orchestrator.recorders.mlflow import MlflowRecorder, MlflowTracker
from wmarena.orchestrator.recorders.process import RecorderProcess
from wmarena.orchestrator.recorders.tracker import Delivery, TrackedRun, TrackerError
from wmarena.schemes.keys import Key


@pytest.fixture
def world(tmp_path: Path, blank_database: Path) -> Iterator[World]:
    """A store whose MLflow database is ready, and empty."""
    world = World(tmp_path)
    shutil.copy(blank_database, world.store.root / "mlflow.db")
    yield world
    world.journal.close()


@pytest.fixture
def client(world: World) -> Any:
    """A plain MLflow client on the same database."""
    return MlflowClient(f"sqlite:///{world.store.root / 'mlflow.db'}")


def recorder_of(world: World, uri: str | None = None) -> MlflowRecorder:
    """A fresh recorder, as a new process would make it."""
    return MlflowRecorder(world.store, world.journal, uri)


def runs_of(client: Any, filter_string: str = "") -> list[Any]:
    """All living runs of the experiment."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id], filter_string, max_results=1000))


def nested(client: Any) -> dict[str, Any]:
    """Task id -> its one run; fails where a task has two."""
    found = [r for r in runs_of(client) if "wmarena.task_id" in r.data.tags]
    ids = [r.data.tags["wmarena.task_id"] for r in found]
    assert max(Counter(ids).values(), default=1) == 1
    return dict(zip(ids, found, strict=True))


def executions(client: Any) -> dict[str, Any]:
    """Run id -> parent run."""
    return {r.info.run_name: r for r in runs_of(client, "tags.`wmarena.kind` = 'run'")}


def test_an_experiment_links_to_its_views(world: World, client: Any) -> None:
    """The description names saved views, whose columns are tags; what somebody has written there since stays."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    names = re.findall(r"viewStateShareKey=([\w-]+)", experiment.tags["mlflow.note.content"])
    views = [json.loads(experiment.tags[f"mlflow.sharedViewState.{name}"]) for name in names]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "our own words")
    recorder_of(world).sync("r1")

    assert len(views) == 2
    assert all("tags.`wmarena.scheme`" in view["selectedColumns"] for view in views)
    assert [len(runs_of(client, view["searchFilter"])) for view in views] == [5, 3]
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "our own words"


def test_an_execution_says_what_it_asked_of_which_data(world: World, client: Any) -> None:
    """Parameters name what is compared, the data set is an input."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")
    run = executions(client)["r1"]

    assert run.data.params == {"workloads": "digits_mlp", "schemes": "toy", "attacks": "finetune, none", "seeds": "0"}
    assert [found.dataset.name for found in run.inputs.dataset_inputs] == ["digits"]


def test_figures_stand_in_the_description(world: World, client: Any) -> None:
    """A report's images are shown by the run that has them as artifacts, also when they come after its end."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")
    assert "![" not in executions(client)["r1"].data.tags["mlflow.note.content"]
    figures = world.store.report_dir(EXPERIMENT, "r1") / "figures"
    figures.mkdir(parents=True)
    (figures / "survival.png").write_bytes(b"a picture")
    recorder_of(world).sync("r1")
    run = executions(client)["r1"]

    shown = f"![figures/survival.png](get-artifact?path=figures/survival.png&run_uuid={run.info.run_id})"
    assert run.data.tags["mlflow.note.content"].endswith(shown)
    assert len(run.data.tags["mlflow.note.content"]) < 8000
    assert [f.path for f in client.list_artifacts(run.info.run_id, "figures")] == ["figures/survival.png"]


def test_every_entry_is_a_nested_run_of_its_execution(world: World, client: Any) -> None:
    """Train and embed tasks and cells have one run each, named by their labels, under one parent with its tags."""
    world.whole_run("r1")

    report = recorder_of(world).sync("r1")

    (parent,) = executions(client).values()
    found = nested(client)
    assert report == SyncReport(
        sent=len(world.entries), over=True, experiment=parent.info.experiment_id, parent=parent.info.run_id
    )
    assert found.keys() == {t.id for t in world.entries}
    assert {r.info.run_name for r in found.values()} == {t.label for t in world.entries}
    assert {r.data.tags["mlflow.parentRunId"] for r in found.values()} == {parent.info.run_id}
    assert {r.info.status for r in [parent, *found.values()]} == {"FINISHED"}
    assert parent.info.run_name == parent.data.tags["wmarena.run_id"] == "r1"
    assert parent.data.tags["wmarena.code_version"] == "0.1.0+abc"
    assert len(parent.data.tags["wmarena.spec_digest"]) == 64
    assert "| digits_mlp | toy | none | 1/1 |" in parent.data.tags["mlflow.note.content"]


def test_a_cell_holds_evidence_configuration_and_curves(world: World, client: Any) -> None:
    """The attack's training curve by step, the verdict's numbers and the resolved fields stand in one run."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")

    run = nested(client)[world.cells[5].id]
    curve = client.get_metric_history(run.info.run_id, "training/loss")

    assert [(m.step, m.value) for m in curve] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.data.metrics["verdict"] == 0.0
    assert run.data.metrics["metric_clean"] == 0.97
    assert run.data.metrics["strength"] == 5.0
    assert run.data.params["attack.epochs"] == "5"
    assert run.info.end_time - run.info.start_time == 4000  # two seconds of attack, two of verification
    assert "Watermark not found" in run.data.tags["mlflow.note.content"]


def test_data_sets_and_models_are_references(world: World, client: Any) -> None:
    """A run's input is the data set with its fingerprint; models point at the store and can be searched by evidence."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")
    number = client.get_experiment_by_name(EXPERIMENT).experiment_id

    models = {m.tags["wmarena.task_id"]: m for m in client.search_logged_models([number])}
    marked, attacked = models[world.embed.id], models[world.attacks[5].id]
    cell = client.get_run(nested(client)[world.cells[5].id].info.run_id)
    (data,) = cell.inputs.dataset_inputs
    survivors = client.search_logged_models([number], filter_string="metrics.verdict > 0.5")

    assert models.keys() == {world.embed.id, *(a.id for a in world.attacks.values())}
    assert marked.tags["artifact_uri"] == (world.store.folder(world.embed.id) / "model.safetensors").as_uri()
    assert marked.status == "READY"
    assert (data.dataset.name, data.dataset.digest) == ("digits", "f" * 36)
    assert [m.model_id for m in cell.inputs.model_inputs] == [marked.model_id]
    assert [m.model_id for m in cell.outputs.model_outputs] == [attacked.model_id]
    assert {m.model_id for m in survivors} == {marked.model_id, models[world.attacks[1].id].model_id}
    assert not list((world.store.root / "mlartifacts").rglob("*.safetensors"))


def test_syncing_again_sends_nothing(world: World, client: Any) -> None:
    """The same process and a new one both find everything in its place."""
    world.whole_run("r1")
    recorder = recorder_of(world)
    recorder.sync("r1")

    again, anew = recorder.sync("r1"), recorder_of(world).sync("r1")

    assert (again.sent, again.present) == (anew.sent, anew.present) == (0, len(world.entries))
    assert len(runs_of(client)) == 1 + len(world.entries)


def test_an_entry_sent_but_not_marked_is_found_again(world: World, client: Any) -> None:
    """A recorder killed after the last write and before its mark leaves no second run behind."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")
    with closing(sqlite3.connect(world.store.journal_path)) as journal, journal:
        journal.execute("DELETE FROM sent")

    report = recorder_of(world).sync("r1")

    assert report.sent == len(world.entries)
    assert nested(client).keys() == {t.id for t in world.entries}
    assert len(executions(client)) == 1
    assert len(client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])) == 3


def test_a_half_written_run_is_replaced(world: World, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder killed in the middle of an entry: the next one deletes the half and sends it completely."""
    world.whole_run("r1")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", killed)
        with pytest.raises(KeyboardInterrupt):
            recorder_of(world).sync("r1")
    half = [r for r in runs_of(client) if r.info.status == "RUNNING" and "wmarena.task_id" in r.data.tags]

    recorder_of(world).sync("r1")

    assert [r.info.run_name for r in half] == [world.embed.label]
    assert {r.info.status for r in nested(client).values()} == {"FINISHED"}
    assert len(client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])) == 3


def test_two_recorders_at_once_send_once(world: World, client: Any) -> None:
    """A manual sync while a run's recorder is working: they exclude each other."""
    world.whole_run("r1")

    def sync() -> int:
        with Journal(world.store.journal_path) as journal:
            return MlflowRecorder(world.store, journal).sync("r1").sent

    with ThreadPoolExecutor(2) as pool:
        sent = [f.result() for f in [pool.submit(sync), pool.submit(sync)]]

    assert sorted(sent) == [0, len(world.entries)]
    assert nested(client).keys() == {t.id for t in world.entries}


def test_a_later_execution_of_finished_tasks_adds_a_parent_only(world: World, client: Any) -> None:
    """Cached work is not recorded twice: the new parent says how much it reuses."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")
    world.start("r2", cached=world.tasks)
    world.journal.finish_run("r2", "done")

    report = recorder_of(world).sync("r2")

    second = executions(client)["r2"]
    assert (report.sent, report.present) == (0, len(world.entries))
    assert second.data.tags["wmarena.reuses"] == str(len(world.tasks))
    assert second.data.metrics["n_cached"] == len(world.tasks)
    assert len(runs_of(client)) == 2 + len(world.entries)


def test_cached_tasks_that_were_never_sent_are_sent(world: World, client: Any) -> None:
    """If the first execution could not be recorded, the second one brings everything."""
    world.whole_run("r1")
    world.start("r2", cached=world.tasks)
    world.journal.finish_run("r2", "done")

    assert recorder_of(world).sync("r2").sent == len(world.entries)


def test_failures_are_shown_and_success_comes_beside_them(world: World, client: Any) -> None:
    """A failed task is a FAILED run with its cause, once per execution; what it skipped is counted in the parent."""
    world.start("r1")
    world.finish(
        "r1", world.clean, world.twin, world.embed, world.none, world.control, world.attacks[1], world.cells[1]
    )
    world.fail("r1", world.attacks[5], world.cells[5], world.original)
    world.journal.finish_run("r1", "failed")
    recorder_of(world).sync("r1")
    recorder_of(world).sync("r1")

    (failed,) = runs_of(client, "attributes.status = 'FAILED' and tags.`wmarena.kind` = 'attack'")
    first = executions(client)["r1"]
    world.start("r2", cached=[t for t in world.tasks if t not in (world.attacks[5], world.cells[5], world.original)])
    world.finish("r2", world.attacks[5], world.cells[5], world.original)
    world.journal.finish_run("r2", "done")
    report = recorder_of(world).sync("r2")

    assert failed.data.tags["wmarena.task_id"] == world.attacks[5].id
    assert failed.data.tags["wmarena.error"] == "diverged: loss is not finite"
    assert failed.info.run_name == world.attacks[5].label
    assert first.info.status == "FAILED"
    assert (first.data.metrics["n_failed"], first.data.metrics["n_skipped"]) == (1, 2)
    assert report.sent == 2
    assert nested(client)[world.cells[5].id].info.status == "FINISHED"
    assert recorder_of(world).sync("r1").sent == 0


def test_a_cell_waits_for_what_it_is_compared_with(world: World, client: Any) -> None:
    """While the clean twin is still to come, the cell is not sent without it; meanwhile the execution is RUNNING."""
    world.start("r1")
    world.finish("r1", world.clean, world.embed, world.none)
    recorder = recorder_of(world)
    before = recorder.sync("r1")
    running = executions(client)["r1"].info.status
    world.finish("r1", world.twin)

    after = recorder.sync("r1")

    assert (before.sent, before.over, running) == (1, False, "RUNNING")
    assert after.sent == 3
    assert nested(client)[world.none.id].data.metrics["metric_clean"] == 0.97


def test_an_abandoned_execution_is_closed(world: World, client: Any) -> None:
    """Where the driver is gone the parent ends as KILLED, and what is settled is there."""
    world.start("r1")
    world.finish("r1", world.clean, world.embed, world.none)

    report = recorder_of(world).sync("r1", abandoned=True)

    parent = executions(client)["r1"]
    assert (report.sent, parent.info.status) == (3, "KILLED")
    assert parent.data.tags["wmarena.status"] == "interrupted"
    assert parent.data.metrics["n_open"] == 7


def test_an_execution_followed_by_another_is_over(world: World, client: Any) -> None:
    """A store runs one plan at a time: what a dead driver left open is closed once a later execution has begun."""
    world.start("r1")
    world.finish("r1", world.clean)
    before = recorder_of(world).sync("r1").over
    world.start("r2", cached=[world.clean])

    after = recorder_of(world).sync("r1").over

    assert (before, after) == (False, True)
    assert executions(client)["r1"].info.status == "KILLED"


def test_a_deleted_database_is_filled_again(world: World, client: Any) -> None:
    """Marks belong to one experiment of one database, not to its name."""
    world.whole_run("r1")
    recorder_of(world).sync("r1")
    client.rename_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id, "put away")

    report = recorder_of(world).sync("r1")

    assert report.sent == len(world.entries)
    assert nested(client).keys() == {t.id for t in world.entries}


def test_an_unreachable_server_is_a_warning(world: World, client: Any) -> None:
    """Nothing is raised, no password is shown, and the next sync with a running server sends everything."""
    world.whole_run("r1")

    report = recorder_of(world, "http://ann:pw1@127.0.0.1:9").sync("r1")

    assert report.sent == 0
    assert report.failed == len(world.tasks)
    assert report.warning is not None
    assert "not everything is recorded at http://127.0.0.1:9" in report.warning
    assert "pw1" not in report.warning
    assert recorder_of(world).sync("r1").sent == len(world.entries)


class Refusing(MlflowTracker):
    """Refuses one task."""

    def __init__(self, root: Path, task: Task, *, unreachable: bool) -> None:
        super().__init__(root)
        self.task = task
        self.unreachable = unreachable

    def send(self, delivery: Delivery) -> TrackedRun:
        if delivery.entry.task_id == self.task.id:
            raise TrackerError("no", unreachable=self.unreachable)
        return super().send(delivery)


def test_one_refused_entry_does_not_stop_the_others(world: World, client: Any) -> None:
    """A refusal is counted and tried again; an unreachable tracker ends the pass."""
    world.whole_run("r1")

    away = Mirror(world.store, world.journal, Refusing(world.store.root, world.embed, unreachable=True)).sync("r1")
    refused = Mirror(world.store, world.journal, Refusing(world.store.root, world.embed, unreachable=False)).sync("r1")
    last = recorder_of(world).sync("r1")

    assert (away.sent, away.failed) == (2, len(world.entries) - 2)
    assert (refused.sent, refused.failed) == (len(world.entries) - 3, 1)
    assert refused.warning is not None
    assert (last.sent, last.failed, last.warning) == (1, 0, None)


def test_results_outlive_their_artifacts(world: World, client: Any) -> None:
    """Where an artifact was removed, the run is sent without curves and without a model."""
    world.whole_run("r1")
    shutil.rmtree(world.store.folder(world.attacks[5].id))

    report = recorder_of(world).sync("r1")

    run = nested(client)[world.cells[5].id]
    assert report.failed == 0
    assert "training/loss" not in run.data.metrics
    assert run.data.metrics["metric_marked"] == 0.95
    assert run.outputs.model_outputs == []


def test_the_report_is_attached_to_the_execution(world: World, client: Any) -> None:
    """Spec, plan, tables and figures are artifacts; other files of the folder are not; a rebuilt report replaces it."""
    world.whole_run("r1")
    folder = world.store.report_dir(EXPERIMENT, "r1")
    (folder / "figures").mkdir()
    for name in ("report.html", "results.parquet", "figures/survival.svg", "secret.txt"):
        (folder / name).write_text("first")
    recorder = recorder_of(world)
    recorder.sync("r1")
    parent = executions(client)["r1"].info.run_id
    (folder / "report.html").write_text("second")

    recorder.sync("r1")

    root = world.store.root / "mlartifacts" / EXPERIMENT / parent / "artifacts"
    found = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert found == {"spec.yaml", "plan.json", "report.html", "results.parquet", "figures/survival.svg"}
    assert (root / "report.html").read_text() == "second"
    assert (root / "spec.yaml").read_text() == SPEC


def test_a_report_elsewhere_can_be_attached(world: World, client: Any, tmp_path: Path) -> None:
    """``attach_report`` takes any folder; a tracker that is away is a warning."""
    world.whole_run("r1")
    (tmp_path / "report.md").write_text("# Elsewhere")

    told = recorder_of(world).attach_report("r1", tmp_path)
    away = recorder_of(world, "http://127.0.0.1:9").attach_report("r1", tmp_path)

    parent = executions(client)["r1"].info.run_id
    assert told is None
    assert [a.path for a in client.list_artifacts(parent)] == ["report.md"]
    assert away is not None


def test_no_key_material_reaches_the_tracker(world: World) -> None:
    """Seed and secret tensors of a key are nowhere in database or artifacts, as bytes or text; its commitment is."""
    seed, secret = bytes(range(100, 132)), torch.arange(64, dtype=torch.float32).exp().fmod(7.0)
    key = Key("toy", seed, {"config": {}}, {"projection": secret})
    world.whole_run("r1")
    for task in (world.embed, world.attacks[5]):
        save_key(key, world.store.key_dir(task.id), None)
    MlflowRecorder(world.store, world.journal, log_models=True).sync("r1")

    files = [p for p in (world.store.root / "mlartifacts").rglob("*") if p.is_file()]
    content = b"".join(p.read_bytes() for p in [*files, *world.store.root.glob("mlflow.db*")])

    assert any(p.name == "model.safetensors" for p in files)
    assert b"ab" * 32 in content
    for leaked in (seed, seed.hex().encode(), str(list(seed)).encode(), secret.numpy().tobytes()[:32]):
        assert leaked not in content


def test_the_experiment_does_not_depend_on_the_working_folder(world: World, client: Any) -> None:
    """Artifacts have an absolute home in the store, and the database is in WAL mode."""
    world.start("r1")
    recorder_of(world).sync("r1")

    experiment = client.get_experiment_by_name(EXPERIMENT)
    with closing(sqlite3.connect(world.store.root / "mlflow.db")) as db:
        (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    assert experiment.artifact_location == (world.store.root / "mlartifacts" / EXPERIMENT).as_uri()
    assert mode == "wal"


def test_a_deleted_experiment_is_a_warning_with_a_way_out(world: World, client: Any) -> None:
    """MLflow keeps the names of deleted experiments: the user is told how to restore it."""
    world.whole_run("r1")
    client.delete_experiment(client.create_experiment(EXPERIMENT))

    report = recorder_of(world).sync("r1")

    assert report.warning is not None
    assert "mlflow experiments restore" in report.warning


def test_the_process_follows_a_run_and_drains(world: World, client: Any) -> None:
    """Started beside a run, it sends what the run settles, then the report written after the end, then ends."""
    world.start("r1")
    world.finish("r1", world.clean, world.twin)
    process = RecorderProcess(world.store, "r1")
    process.start()
    world.finish("r1", *(t for t in world.tasks if t.kind is not Kind.TRAIN))
    world.journal.finish_run("r1", "done")
    (world.store.report_dir(EXPERIMENT, "r1") / "report.md").write_text("# Report")

    report = process.drain(timeout=300)

    parent = executions(client)["r1"]
    assert report is not None
    assert (report.sent, report.failed, report.warning) == (len(world.entries), 0, None)
    assert report.parent == parent.info.run_id
    assert "report.md" in {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert parent.info.status == "FINISHED"


def test_the_process_may_die_or_lose_its_driver(world: World, client: Any) -> None:
    """Killed, it loses nothing; when the driver dies, it sends the rest, closes the execution and ends."""
    world.start("r1")
    world.finish("r1", world.clean)
    killed = RecorderProcess(world.store, "r1")
    killed.start()
    killed.kill()
    lost = killed.drain(timeout=60)
    orphan = RecorderProcess(world.store, "r1")
    orphan.start()

    child = orphan._process
    assert child is not None
    assert child.stdin is not None
    child.stdin.close()
    child.wait(timeout=300)

    assert lost is not None
    assert lost.warning is not None
    assert "status -9" in lost.warning
    assert nested(client).keys() == {world.clean.id}
    assert executions(client)["r1"].info.status == "KILLED"
