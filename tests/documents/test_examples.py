"""The plugins of the how-tos pass the contracts and are found by their entry points."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from tests.attack_contract import AttackContract
from tests.contracts import SchemeContract
from wmarena.attacks.base import Attack
from wmarena.experiments.workloads.images.digits import DIGITS
from wmarena.schemes.base import Scheme

TREE = Path(__file__).resolve().parents[2]
EXAMPLES = TREE / "docs" / "examples"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package as if it were installed, here and in processes that are started from here."""
    monkeypatch.syspath_prepend(EXAMPLES)
    paths = [str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


class TestSigns(SchemeContract):
    n_strangers = 200

    @pytest.fixture
    def scheme(self) -> Scheme:
        from wmarena_extras.signs import Signs

        return Signs()


class TestClip(AttackContract):
    verdict = True

    @pytest.fixture
    def attack(self, monkeypatch: pytest.MonkeyPatch) -> Attack:
        from wmarena_extras.clip import Clip

        from wmarena.orchestrator.plan import plugins

        # The contract rebuilds attacks from their names: as an entry point would, for this test alone.
        monkeypatch.setattr(plugins, "names", lambda kind: {"clip": "wmarena_extras.clip:Clip"})
        return Clip(share=0.1)


@pytest.fixture(scope="module")
def my_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with scikit-learn's digits as PNG files in one folder per class."""
    root = tmp_path_factory.mktemp("data")
    digits = DIGITS.load(None)
    for part, images, n in (("train", digits.train, 600), ("test", digits.test, 200)):
        for i in range(n):
            folder = root / "my_images" / part / f"digit{images.labels[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.pixels[i, 0]).save(folder / f"{i:04}.png")
    return root


def test_the_workload_reads_its_folders(my_images: Path) -> None:
    """Every image arrives with the label of its folder; the network's taps and predictions have the right shapes."""
    from wmarena_extras.my_images import MY_IMAGES, MyImages

    assert sorted(np.unique(MY_IMAGES.load(my_images).train.labels)) == list(range(10))
    place = MyImages().bind(torch.device("cpu"), my_images)
    network = place.task.network(seed=0)
    inputs, _ = next(iter(place.val.in_order(8)))

    assert (len(place.train), len(place.val), len(place.test)) == (500, 100, 200)
    assert [tuple(tap.shape[1:]) for tap in place.task.stages(network, inputs)] == [(16, 12, 12), (32, 6, 6)]
    assert tuple(network(inputs).shape) == (8, 10)


def install(folder: Path) -> None:
    """The metadata that pip would write for the example package: its name and its entry points."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n\n".join(groups) + "\n")


def wmarena(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command in a process that sees the installed examples."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-m", "wmarena", "--store", str(tmp_path / "store"), "--tracking-uri", "none"]
    return subprocess.run(
        [*command, "--json", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_example_spec_runs(tmp_path: Path, my_images: Path) -> None:
    """Installed, the three examples are found by name and run beside built-in plugins; the mark is where it was put."""
    install(tmp_path)
    listed = json.loads(wmarena(tmp_path, "list", "schemes").stdout)
    assert "signs" in {plugin["name"] for plugin in listed}

    done = wmarena(tmp_path, "run", str(EXAMPLES / "spec.yaml"), "--executor", "inline", "--data-root", str(my_images))

    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    rows = pyarrow.parquet.read_table(summary["results"]).to_pylist()
    assert {row["workload"] for row in rows} == {"digits_mlp", "my_images"}
    assert {row["attack"] for row in rows} >= {"none", "clip", "finetune"}
    assert all(row["verdict"] for row in rows if row["attack"] == "none" and row["control"] is None)
    assert not any(row["verdict"] for row in rows if row["control"] is not None)
