"""Shared fixtures: an empty evidence bench, and a finished run for the command line."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.experiments.evidence_factory import Bench
from tests.experiments.spec_texts import TINY
from wmarena.experiments.cli import main
from wmarena.experiments.running.execution import RunSummary, run
from wmarena.experiments.running.pool import Pool
from wmarena.experiments.spec.experiment import ExperimentSpec


@pytest.fixture
def bench() -> Bench:
    """An empty plan."""
    return Bench()


@dataclass(frozen=True)
class Finished:
    """A store in which the tiny spec has run."""

    spec: Path
    store: Path
    summary: RunSummary

    def only(self, kind: str, part: str = "") -> Path:
        """The artifact of the one task whose label begins with ``kind`` and contains ``part``."""
        from wmarena.orchestrator.journal.journal import Journal

        with Journal(self.store / "journal.sqlite") as journal:
            ids = [task_id for _, task_id, _, _ in journal.run_tasks(self.summary.run_id)]
            rows = [row for row in journal.task_rows(ids) if row["label"].startswith(kind) and part in row["label"]]
        (row,) = rows
        return self.store / "artifacts" / row["id"][:2] / row["id"]

    @property
    def key(self) -> Path:
        """The owner's key."""
        return self.store / "keys" / self.only("embed").name

    @property
    def marked(self) -> Path:
        """Weights of the marked model."""
        return self.only("embed") / "model.safetensors"

    @property
    def clean(self) -> Path:
        """Weights of the clean model."""
        return self.only("train/clean/seed0") / "model.safetensors"


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny spec, run once for all tests; read only."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    summary = run(ExperimentSpec.load(path), store=folder / "store", record=False, pool=Pool(executor="inline"))
    return Finished(path, folder / "store", summary)


@pytest.fixture
def finished(finished_once: Finished, tmp_path: Path) -> Finished:
    """A copy of the finished store that tests may change."""
    store = tmp_path / "store"
    shutil.copytree(finished_once.store, store)
    return Finished(finished_once.spec, store, finished_once.summary)


Wmarena = Callable[..., int]


@pytest.fixture
def wmarena(finished: Finished) -> Wmarena:
    """The command line on the finished store, without MLflow."""

    def command(*arguments: object) -> int:
        return main(["--store", str(finished.store), "--tracking-uri", "none", *map(str, arguments)])

    return command
