"""Fixtures of several test files: an empty store, a task, an empty database."""

from pathlib import Path

import pytest

from tests.orchestrator.toys import task
from wmarena.orchestrator.plan.task import Task
from wmarena.orchestrator.store.local import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store").open()


@pytest.fixture
def item() -> Task:
    """A task."""
    return task("one", config={"workload": {"name": "toy"}})


@pytest.fixture(scope="session")
def blank_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty MLflow database: making one takes seconds."""
    from wmarena.orchestrator.recorders.connection import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
