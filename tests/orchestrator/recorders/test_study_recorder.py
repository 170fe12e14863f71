"""Studies in MLflow: one run for the study, one for each trial, linked to its tasks, each once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.recorder_world import EXPERIMENT, SPEC, World
from wmarena.orchestrator.recorders.connection import MlflowClient
from wmarena.orchestrator.recorders.mlflow import MlflowRecorder

TRIAL = {
    "state": "complete",
    "feasible": True,
    "warm": False,
    "why": "",
    "params": {"schemes.toy.lambda1": 0.1},
    "values": {"margin(finetune)": 0.5},
    "measures": {"accuracy": 0.95},
    "constraints": {"fidelity_drop <= 0.01": -0.005},
    "told": [[1, 0.7], [5, 0.5]],
    "started": 1000.0,
    "finished": 1002.0,
}


@pytest.fixture
def world(tmp_path: Path, blank_database: Path) -> Iterator[World]:
    """An execution of a study, over, with one finished trial and one that a killed driver lost."""
    world = World(tmp_path)
    shutil.copy(blank_database, world.store.root / "mlflow.db")
    world.journal.start_run("r1", EXPERIMENT, SPEC, {"study": "s", "description": "Why?"}, world.plan(), set())
    world.finish("r1", *world.tasks)
    world.journal.record_trial("s", 0, {"number": 0, **TRIAL, "tasks": [cell.id for cell in world.cells.values()]})
    world.journal.record_trial("s", 1, {"number": 1, **TRIAL, "state": "lost", "values": {}, "tasks": []})
    world.journal.record_trial("s", 2, {"number": 2, **TRIAL, "state": "running", "values": {}, "tasks": []})
    folder = world.store.report_dir(EXPERIMENT, "r1")
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>study</p>")
    world.journal.finish_run("r1", "done")
    yield world
    world.journal.close()


def pages(world: World) -> dict[str, Any]:
    """The runs of study and trials, by name."""
    client = MlflowClient(f"sqlite:///{world.store.root / 'mlflow.db'}")
    number = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([number], "tags.`wmarena.study` = 's'", max_results=100)
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_a_trial_is_a_run_below_its_study(world: World) -> None:
    """Parameters, values, intermediate values by step, state and links stand in it; one under way waits."""
    MlflowRecorder(world.store, world.journal).sync("r1")
    found = pages(world)
    trial, lost = found["s/trial 0"], found["s/trial 1"]

    assert found.keys() == {"s", "s/trial 0", "s/trial 1"}
    assert {trial.data.tags["mlflow.parentRunId"]} == {found["s"].info.run_id}
    assert trial.data.params == {"schemes.toy.lambda1": "0.1"}
    assert trial.data.metrics["margin_finetune_"] == 0.5
    assert trial.data.metrics["excess/fidelity_drop __ 0.01"] == -0.005
    assert trial.data.tags["wmarena.state"] == "complete"
    assert (trial.info.status, lost.info.status) == ("FINISHED", "KILLED")
    assert trial.info.end_time - trial.info.start_time == 2000
    assert trial.data.tags["mlflow.note.content"].count("#/experiments/") == 2
    assert found["s"].data.metrics == {"n_trials": 1.0, "n_feasible": 1.0}


def test_a_second_pass_sends_no_trial_again(world: World) -> None:
    """Not even one whose mark was lost: it is found by its tags. The report stands beside the study."""
    MlflowRecorder(world.store, world.journal).sync("r1")
    first = pages(world)
    with world.journal._transaction():
        world.journal._db.execute("DELETE FROM sent WHERE task LIKE 'trial:%' OR task LIKE 'study:%'")
    MlflowRecorder(world.store, world.journal).sync("r1")

    assert {name: run.info.run_id for name, run in pages(world).items()} == {
        name: run.info.run_id for name, run in first.items()
    }
    client = MlflowClient(f"sqlite:///{world.store.root / 'mlflow.db'}")
    assert [file.path for file in client.list_artifacts(first["s"].info.run_id)] == ["report.html"]
