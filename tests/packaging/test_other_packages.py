"""A user's own packages named ``schemes``, ``attacks``, ``orchestrator`` and ``experiments`` do not disturb WMArena."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.experiments.spec_texts import TINY
from tests.import_guard import FOLDERS
from tests.import_paths import users_environment

STUDY = """\
name: tiny_study
experiment:
  workloads:
    - {name: digits_mlp, epochs: 1, train_size: 200}
  schemes:
    - {name: uchida, bits: 24}
  attacks:
    - {name: finetune, variant: ftal, epochs: 1}
  seeds: [0]
search:
  schemes.uchida.lambda1: {low: 1.0e-3, high: 1.0, log: true}
objectives: {mean_margin: maximize}
trials: 2
sampler: {name: random}
"""
SCRIPT = """\
from pathlib import Path

from wmarena import ExperimentSpec, run
from wmarena.experiments.running.pool import Pool

if __name__ == "__main__":
    summary = run(ExperimentSpec.load("tiny.yaml"), store="store", record=False, pool=Pool(executor="ray", workers=1))
    print("failed:", summary.failed, "report:", Path(summary.report).is_file())
"""
CELLS = (
    "from pathlib import Path",
    "from wmarena import ExperimentSpec, run",
    "from wmarena.experiments.running.pool import Pool",
    'summary = run(ExperimentSpec.load("tiny.yaml"), store="store", record=False, pool=Pool(executor="inline"))',
    'print("failed:", summary.failed, "report:", Path(summary.report).is_file())',
)

pytestmark = pytest.mark.package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with a spec, a study and four packages of its own, each of which raises when it is imported."""
    project = tmp_path / "project"
    for name in FOLDERS:
        package = project / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f'raise RuntimeError("the project\'s own {name} was imported")\n')
        (package / "base.py").write_text(f'raise RuntimeError("the project\'s own {name}.base was imported")\n')
    (project / "tiny.yaml").write_text(TINY)
    (project / "study.yaml").write_text(STUDY)
    (project / "script.py").write_text(SCRIPT)
    return project


def python(folder: Path, *arguments: str) -> str:
    """What a user's Python process prints that is started in ``folder`` and ends well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=users_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def wmarena(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON summary of a command; ``python -m`` puts the project first on the path."""
    summary: dict[str, Any] = json.loads(python(folder, "-m", "wmarena", "--store", "store", "--json", *arguments))
    return summary


def test_the_projects_packages_would_be_imported(folder: Path) -> None:
    """The other tests here mean something: in this folder, the bare names lead to packages that raise."""
    with pytest.raises(AssertionError, match="the project's own schemes was imported"):
        python(folder, "-c", "import schemes")


def test_an_inline_run_works(folder: Path) -> None:
    """A run in the driver's process, with its recorder process for MLflow, completes."""
    summary = wmarena(folder, "run", "tiny.yaml", "--executor", "inline")

    assert summary["failed"] == 0
    assert Path(folder / summary["report"]).is_file()


@pytest.mark.ray
def test_a_run_on_ray_works(folder: Path) -> None:
    """Ray workers have the project on their path, and import WMArena's own packages."""
    summary = wmarena(folder, "--tracking-uri", "none", "run", "tiny.yaml", "--executor", "ray", "--workers", "1")

    assert summary["failed"] == 0


def test_a_study_works(folder: Path) -> None:
    """``wmarena tune`` completes its trials."""
    summary = wmarena(folder, "--tracking-uri", "none", "tune", "study.yaml", "--executor", "inline")

    assert summary["trials"] == 2


@pytest.mark.ray
def test_a_script_works(folder: Path) -> None:
    """``python script.py`` has the project first on its path; its run on Ray completes."""
    assert python(folder, "script.py").splitlines()[-1] == "failed: 0 report: True"


def test_a_notebook_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook beside the packages imports the public API and runs a spec."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])

    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()

    assert notebook.cells[-1].outputs[0]["text"].strip() == "failed: 0 report: True"
