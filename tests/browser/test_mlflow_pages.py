"""MLflow's pages in a browser: names, columns, description, figures, data, curves."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.chromium import browser, page_text
from tests.orchestrator.recorder_world import EXPERIMENT, World
from tests.servers import fetched, free_ports
from wmarena.experiments.commands.browsing import mlflow_server, start, stop
from wmarena.orchestrator.recorders.connection import MlflowClient
from wmarena.orchestrator.recorders.mlflow import MlflowRecorder
from wmarena.orchestrator.recorders.views import experiment_tags

Look = Callable[[str], str]


@dataclass(frozen=True)
class Site:
    """A running MLflow with one recorded execution.

    Attributes:
        runs: name of a run -> its id.
    """

    address: str
    experiment: str
    runs: dict[str, str]
    alive: Callable[[], bool]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An execution with a figure, recorded and served."""
    browser()
    world = World(tmp_path_factory.mktemp("world"))
    world.whole_run("20261121-093000-4fa1c2")
    figures = world.store.report_dir(EXPERIMENT, "20261121-093000-4fa1c2") / "figures"
    figures.mkdir(parents=True)
    Image.new("RGB", (40, 30), "steelblue").save(figures / "survival.png")
    MlflowRecorder(world.store, world.journal).sync("20261121-093000-4fa1c2")
    uri = f"sqlite:///{world.store.root / 'mlflow.db'}"
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    runs = {r.info.run_name: r.info.run_id for r in client.search_runs([found.experiment_id], max_results=100)}
    port = free_ports()
    server = start(mlflow_server(uri, port))
    try:
        fetched(f"http://127.0.0.1:{port}/", lambda: server.poll() is None)
        yield Site(f"http://127.0.0.1:{port}", found.experiment_id, runs, lambda: server.poll() is None)
    finally:
        stop([server])
        world.journal.close()


@pytest.fixture
def look(site: Site, tmp_path: Path) -> Look:
    """A page's document; spaces are single."""

    def at(path: str) -> str:
        return re.sub(r"\s+", " ", page_text(f"{site.address}/{path}", tmp_path))

    return at


def linked(site: Site, name: str) -> str:
    """Find the target of a link in the experiment's description."""
    note = experiment_tags(site.experiment)["mlflow.note.content"]
    (path,) = re.findall(rf"\[{name}\]\(([^)]+)\)", note)
    return path


def test_the_list_of_verdicts_has_tags_as_columns(site: Site, look: Look) -> None:
    """The view opens flat, one line per cell, with scheme, attack and margin as columns, and links to other views."""
    page = look(linked(site, "Verdicts"))

    assert "verify/toy/finetune/epochs=1/seed0" in page
    assert "train/clean/seed0" not in page
    for column in ("tags.`wmarena.scheme`", "tags.`wmarena.attack`", "metrics.`margin`", "metrics.`verdict`"):
        assert f'col-id="{column}"' in page
    assert linked(site, "Training").replace("&", "&amp;") in page


def test_the_list_of_training_has_models_only(site: Site, look: Look) -> None:
    """Clean, twin and marked models with their metrics."""
    page = look(linked(site, "Training"))

    assert "embed/toy/seed0" in page
    assert "verify/toy/none/seed0" not in page
    assert 'col-id="metrics.`metric_marked`"' in page


def test_the_page_of_an_execution_tells_the_result(site: Site, look: Look) -> None:
    """Description with table and figure, what was asked, and the data set stand on the first page."""
    run = site.runs["20261121-093000-4fa1c2"]
    page = look(f"#/experiments/{site.experiment}/runs/{run}")
    (picture,) = re.findall(r'<img[^>]+src="(get-artifact[^"]+)"', page)
    kind, body = fetched(f"{site.address}/{picture.replace('&amp;', '&')}", site.alive)

    assert "Does the toy mark survive?" in page
    assert re.search(r"<td[^>]*>finetune epochs=1</td>", page)
    assert (kind, body[:4]) == ("image/png", b"\x89PNG")
    assert "digits" in page


def test_the_page_of_a_cell_tells_its_verdict(site: Site, look: Look) -> None:
    """The verdict in a sentence, resolved parameters, the data set."""
    run = site.runs["verify/toy/finetune/epochs=5/seed0"]
    page = look(f"#/experiments/{site.experiment}/runs/{run}")

    assert "Watermark not found" in page
    assert "attack.epochs" in page
    assert "digits" in page


def test_curves_have_their_steps(site: Site, look: Look) -> None:
    """A training's page lists its curves; what its charts ask for has one value a step."""
    run = site.runs["train/clean/seed0"]
    page = look(f"#/experiments/{site.experiment}/runs/{run}")
    history = f"{site.address}/ajax-api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=training/loss"
    points = json.loads(fetched(history, site.alive)[1])["metrics"]

    assert "training/loss" in page
    assert "training/accuracy" in page
    assert [(p["step"], p["value"]) for p in points] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
